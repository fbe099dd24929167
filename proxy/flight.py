"""Single flight: one generation for all who ask for the same at the same time, streams included.

What is generated belongs to nobody of them: whoever leaves, also the first, leaves alone, and only when all have left it is
aborted. A reader that lags holds the source back, by no more than `WINDOW`, for as long as its own write timeout allows.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

# What a source may be ahead of its slowest reader, and how much is kept for those who come later, in units of its `size`.
WINDOW = 1 << 20
JOINABLE = 4 << 20

Head = TypeVar("Head")
Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class Source(Protocol[Item_co]):
    """What is iterated, once, and closed: an async generator, or something that can be closed before it is begun, too."""

    def __aiter__(self) -> AsyncIterator[Item_co]: ...
    def __anext__(self) -> Awaitable[Item_co]: ...
    def aclose(self) -> Awaitable[None]: ...


class AtOnce(Generic[Item]):
    """A source of one item."""

    __slots__ = ("_items",)

    def __init__(self, item: Item) -> None:
        self._items = [item]

    def __aiter__(self) -> "AtOnce[Item]":
        return self

    async def __anext__(self) -> Item:
        if not self._items:
            raise StopAsyncIteration
        return self._items.pop()

    async def aclose(self) -> None:
        self._items.clear()


class Flight(Generic[Head, Item]):
    """Sets out at once; to be boarded before anything is awaited.

    Args:
        start: gives what is known before the first item, and the items.
        size: of an item, in bytes or the like.
    """

    def __init__(
        self, start: Callable[[], Awaitable[tuple[Head, Source[Item]]]], size: Callable[[Item], int]
    ) -> None:
        self._size = size
        self._items: deque[Item] = deque()
        self._dropped = 0  # items before the first one kept
        self._total = 0
        self._readers: set[Reader[Head, Item]] = set()
        self._arrivals: set[asyncio.Future[None]] = set()
        self._room: asyncio.Future[None] | None = None  # while the source is held back
        self.head: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self._ended = False
        self._abandoned = False
        self._error: Exception | None = None
        self.task = asyncio.create_task(self._fly(start))

    @property
    def joinable(self) -> bool:
        """All that has come is still there, and the rest will come."""
        return self._total <= JOINABLE and self._error is None and not self._abandoned

    def board(self) -> "Reader[Head, Item]":
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    async def leave(self, reader: "Reader[Head, Item]") -> None:
        """The last one waits until what it leaves has ended, so that what that took is in its account."""
        self._readers.discard(reader)
        self._tell_source()
        if not self._readers and not self._ended:
            self._abandoned = True
            self.task.cancel()
            await asyncio.wait([self.task])

    async def has_next(self, reader: "Reader[Head, Item]") -> bool:
        """Waits for an item; False at the end. Raises what the source raised."""
        while reader.place - self._dropped >= len(self._items):
            if self._error is not None:
                raise self._error
            if self._ended:
                return False
            await self._arrival()
        return True

    def take(self, reader: "Reader[Head, Item]") -> Item:
        item = self._items[reader.place - self._dropped]
        reader.place += 1
        reader.size += self._size(item)
        if self._total - reader.size <= WINDOW:
            self._tell_source()
        return item

    async def _fly(self, start: Callable[[], Awaitable[tuple[Head, Source[Item]]]]) -> None:
        try:
            head, source = await start()
            self.head.set_result(head)
            try:
                async for item in source:
                    self._items.append(item)
                    self._total += self._size(item)
                    self._tell_readers()
                    await self._hold_back()
            finally:
                await source.aclose()
        except asyncio.CancelledError:
            self._abandoned = True
            raise
        except Exception as error:
            self._error = error
            if not self.head.done():
                self.head.set_exception(error)
                self.head.exception()  # all may have left
        finally:
            self._ended = True
            if not self.head.done():
                self.head.cancel()
            self._tell_readers()

    async def _hold_back(self) -> None:
        """Until the slowest reader is within WINDOW; what nobody can need any more is let go."""
        while self._readers:
            slowest = min(self._readers, key=_place)
            if self._total > JOINABLE:
                while self._dropped < slowest.place:
                    self._items.popleft()
                    self._dropped += 1
            if self._total - slowest.size <= WINDOW:
                return
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _tell_source(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _arrival(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._arrivals.add(future)
        try:
            await future
        finally:
            self._arrivals.discard(future)

    def _tell_readers(self) -> None:
        for future in self._arrivals:
            if not future.done():
                future.set_result(None)


class Reader(Generic[Head, Item]):
    """One who asked. To be closed; iterated after `head`.

    Attributes:
        place, size: the number of items taken, and their sizes' sum.
    """

    def __init__(self, flight: Flight[Head, Item]) -> None:
        self.place = 0
        self.size = 0
        self._flight = flight

    async def head(self) -> Head:
        """Raises what the start raised."""
        return await asyncio.shield(self._flight.head)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        if await self._flight.has_next(self):
            return self._flight.take(self)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._flight.leave(self)


def _place(reader: Reader[Any, Any]) -> int:
    return reader.place


class Flights(Generic[Head, Item]):
    """Those under way, by what tells one from another."""

    def __init__(self, size: Callable[[Item], int]) -> None:
        self._size = size
        self._flights: dict[Hashable, Flight[Head, Item]] = {}

    def board(
        self, key: Hashable, start: Callable[[], Awaitable[tuple[Head, Source[Item]]]]
    ) -> tuple[Reader[Head, Item], bool]:
        """A place on the flight of this key, and whether it is a new one."""
        flight = self._flights.get(key)
        if flight is not None and flight.joinable:
            return flight.board(), False
        flight = Flight(start, self._size)
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _task: self._landed(key, flight))
        return flight.board(), True

    def _landed(self, key: Hashable, flight: Flight[Head, Item]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
