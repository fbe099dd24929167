"""Single flight: one generation for all who ask for the same at the same time, streams included.

What is generated belongs to nobody of them: whoever leaves, also the first, leaves alone, and only when all have left it is
aborted. A reader that lags holds the source back, by no more than `WINDOW`, for as long as its own write timeout allows.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

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


async def at_once(item: Item) -> AsyncGenerator[Item, None]:
    """A source of one item."""
    yield item


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
        self._ahead = 0  # size of what the slowest reader has not seen
        self._total = 0
        self._readers: set[Reader[Head, Item]] = set()
        self._stirred: set[asyncio.Future[None]] = set()
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

    def leave(self, reader: "Reader[Head, Item]") -> None:
        self._readers.discard(reader)
        if not self._readers and not self._ended:
            self._abandoned = True
            self.task.cancel()
        self._trim()

    async def has_next(self, reader: "Reader[Head, Item]") -> bool:
        """Waits for an item; False at the end. Raises what the source raised."""
        while reader.place - self._dropped >= len(self._items):
            if self._error is not None:
                raise self._error
            if self._ended:
                return False
            await self._stir()
        return True

    def take(self, reader: "Reader[Head, Item]") -> Item:
        item = self._items[reader.place - self._dropped]
        reader.place += 1
        self._trim()
        return item

    async def _fly(self, start: Callable[[], Awaitable[tuple[Head, Source[Item]]]]) -> None:
        try:
            head, source = await start()
            self.head.set_result(head)
            try:
                async for item in source:
                    self._items.append(item)
                    size = self._size(item)
                    self._total += size
                    self._ahead += size
                    self._wake()
                    while self._ahead > WINDOW and self._readers:
                        self._ahead = self._behind_slowest()
                        if self._ahead > WINDOW:
                            await self._stir()
            finally:
                await source.aclose()
        except Exception as error:
            self._error = error
            if not self.head.done():
                self.head.set_exception(error)
                self.head.exception()  # all may have left
        finally:
            self._ended = True
            if not self.head.done():
                self.head.cancel()
            self._wake()

    def _behind_slowest(self) -> int:
        slowest = min((reader.place for reader in self._readers), default=0) - self._dropped
        return sum(self._size(self._items[place]) for place in range(slowest, len(self._items)))

    def _trim(self) -> None:
        """Nobody can join any more: what all have seen is let go."""
        if self._total > JOINABLE:
            slowest = min((reader.place for reader in self._readers), default=self._dropped)
            while self._dropped < slowest:
                self._items.popleft()
                self._dropped += 1
            self._wake()

    async def _stir(self) -> None:
        """Until something has come, or been taken."""
        future = asyncio.get_running_loop().create_future()
        self._stirred.add(future)
        try:
            await future
        finally:
            self._stirred.discard(future)

    def _wake(self) -> None:
        for future in self._stirred:
            if not future.done():
                future.set_result(None)


class Reader(Generic[Head, Item]):
    """One who asked. To be closed; iterated after `head`."""

    def __init__(self, flight: Flight[Head, Item]) -> None:
        self.place = 0
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
        self._flight.leave(self)


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
