"""Single flight: one source, any number of readers, each at its own pace."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from penstock.proxy.flight import JOINABLE, WINDOW, Flight, Flights, Reader

STEP = WINDOW // 4


class Source:
    """Items of STEP bytes, as fast as they are taken, unless `gate` is closed; how many have been given, and whether it was
    closed."""

    def __init__(self, items: int, error: Exception | None = None) -> None:
        self.given = 0
        self.starts = 0
        self.closed = False
        self.gate = asyncio.Event()
        self.gate.set()
        self._items = items
        self._error = error

    async def start(self) -> tuple[str, AsyncGenerator[bytes, None]]:
        self.starts += 1
        await asyncio.sleep(0)
        return "head", self._all()

    async def _all(self) -> AsyncGenerator[bytes, None]:
        try:
            for place in range(self._items):
                await self.gate.wait()
                self.given += 1
                yield place.to_bytes(4, "big") * (STEP // 4)
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


def flight_of(source: Source) -> Flight[str, bytes]:
    return Flight(source.start, len)


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def places(reader: Reader[str, bytes]) -> list[int]:
    return [int.from_bytes(item[:4], "big") async for item in reader]


async def test_all_readers_get_all_items() -> None:
    source = Source(9)
    flight = flight_of(source)
    readers = [flight.board() for _ in range(20)]
    assert await asyncio.gather(*(reader.head() for reader in readers)) == ["head"] * 20
    assert await asyncio.gather(*(places(reader) for reader in readers)) == [list(range(9))] * 20
    assert source.closed


async def test_the_slowest_reader_holds_the_source_back_by_no_more_than_the_window() -> None:
    source = Source(1000)
    flight = flight_of(source)
    slow, fast = flight.board(), flight.board()
    reading = asyncio.create_task(places(fast))
    for taken in range(40):
        await settled()
        assert source.given == taken + WINDOW // STEP + 1  # the last one is what went beyond it
        await anext(slow)
    await slow.aclose()
    assert await reading == list(range(1000))


async def test_who_leaves_last_waits_until_the_source_is_closed() -> None:
    source = Source(9)
    flight = flight_of(source)
    first, last = flight.board(), flight.board()
    await anext(first)
    await first.aclose()
    assert not source.closed
    await last.aclose()
    assert source.closed


async def test_a_source_held_back_goes_on_when_its_only_reader_does() -> None:
    """Also while others may still join, so that nothing is let go."""
    source = Source(JOINABLE // STEP - 1)
    reader = flight_of(source).board()
    await settled()
    assert source.given == WINDOW // STEP + 1
    assert await asyncio.wait_for(places(reader), 5) == list(range(JOINABLE // STEP - 1))


async def test_what_nobody_can_join_is_let_go() -> None:
    source = Source(1000)
    flight = flight_of(source)
    reader = flight.board()
    most = 0
    async for _ in reader:
        most = max(most, len(flight._items))
    assert most <= JOINABLE // STEP + 1
    assert len(flight._items) <= WINDOW // STEP + 1


async def test_who_comes_late_gets_all_from_the_beginning_or_a_flight_of_his_own() -> None:
    flights: Flights[str, bytes] = Flights(len)
    long, next_one = Source(1000), Source(3)
    first, is_new = flights.board("key", long.start)
    assert is_new
    for _ in range(JOINABLE // STEP - WINDOW // STEP - 2):
        await anext(first)
    await settled()
    second, is_new = flights.board("key", next_one.start)
    assert not is_new
    assert (await anext(second))[:4] == bytes(4)
    await second.aclose()
    for _ in range(WINDOW // STEP + 4):
        await anext(first)
    third, is_new = flights.board("key", next_one.start)
    assert is_new
    assert await places(third) == [0, 1, 2]
    await first.aclose()
    await settled()
    assert long.closed


async def test_an_error_reaches_all_after_what_came_before_it() -> None:
    source = Source(3, ValueError("broken"))
    flight = flight_of(source)
    readers = [flight.board() for _ in range(3)]

    async def read(reader: Reader[str, bytes]) -> int:
        taken = 0
        with pytest.raises(ValueError, match="broken"):
            async for _ in reader:
                taken += 1
        return taken

    assert await asyncio.gather(*map(read, readers)) == [3, 3, 3]
    assert not flight.joinable


async def test_an_error_at_the_start_reaches_all_heads() -> None:
    async def start() -> tuple[str, AsyncGenerator[bytes, None]]:
        await asyncio.sleep(0)
        raise ValueError("no start")

    flight: Flight[str, bytes] = Flight(start, len)
    readers = [flight.board() for _ in range(3)]
    errors = await asyncio.gather(*(reader.head() for reader in readers), return_exceptions=True)
    assert [str(error) for error in errors] == ["no start"] * 3


async def test_it_is_aborted_when_all_have_left_and_not_before() -> None:
    source = Source(1000)
    flight = flight_of(source)
    readers = [flight.board() for _ in range(3)]
    for reader in readers[:2]:
        await anext(reader)
        await reader.aclose()
    await settled()
    assert not source.closed
    await readers[2].aclose()
    await settled()
    assert source.closed and flight.task.done()


async def test_it_is_aborted_before_its_start_is_over() -> None:
    cancelled = asyncio.Event()

    async def start() -> tuple[str, AsyncGenerator[bytes, None]]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    flight: Flight[str, bytes] = Flight(start, len)
    reader = flight.board()
    waiting = asyncio.create_task(reader.head())
    await settled()
    waiting.cancel()
    await reader.aclose()
    await settled()
    assert cancelled.is_set() and flight.task.done()


async def test_who_boards_while_the_last_one_leaves_gets_another_flight() -> None:
    flights: Flights[str, bytes] = Flights(len)
    left, taken = Source(1000), Source(3)
    first, _ = flights.board("key", left.start)
    await anext(first)
    await first.aclose()
    second, is_new = flights.board(
        "key", taken.start
    )  # before the loop has run: the first task is not done yet
    assert is_new
    assert await places(second) == [0, 1, 2]
    await settled()
    assert left.closed


async def test_keys_are_apart_and_forgotten_when_they_have_landed() -> None:
    flights: Flights[str, bytes] = Flights(len)
    one, two = Source(1), Source(2)
    first, _ = flights.board(1, one.start)
    second, _ = flights.board(2, two.start)
    assert [await places(first), await places(second)] == [[0], [0, 1]]
    await settled()
    assert not flights._flights
    assert (one.starts, two.starts) == (1, 1)
