"""Several chunk streams as one."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from penstock.errors import OverloadedError
from penstock.proxy.merge import MAX_PENDING, merged
from penstock.scheduler.outputs import Chunk


class Source:
    """Numbered chunks, and whether it was closed."""

    def __init__(
        self, index: int, length: int, *, error: Exception | None = None, stuck: bool = False
    ) -> None:
        self.index, self.length, self.error, self.stuck = index, length, error, stuck
        self.sent = 0
        self.closed = False

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        try:
            for number in range(1, self.length + 1):
                self.sent = number
                yield Chunk(self.index, str(self.sent), [self.sent])
            if self.error is not None:
                raise self.error
            if self.stuck:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_what_has_arrived_comes_at_once_and_in_order() -> None:
    sources = [Source(0, 5), Source(1, 3), Source(2, 0)]
    batches = [batch async for batch in merged([source.chunks() for source in sources])]
    assert len(batches) == 1
    for source in sources:
        own = [chunk.token_ids[0] for batch in batches for chunk in batch if chunk.index == source.index]
        assert own == list(range(1, source.length + 1))


async def test_an_error_of_one_closes_all() -> None:
    sources = [Source(0, 2, stuck=True), Source(1, 0, error=OverloadedError("full"))]
    with pytest.raises(OverloadedError, match="full"):
        async for _ in merged([source.chunks() for source in sources]):
            pass
    assert all(source.closed for source in sources)


async def test_closing_closes_all() -> None:
    sources = [Source(index, 1, stuck=True) for index in range(3)]
    stream = merged([source.chunks() for source in sources])
    await anext(stream)
    await stream.aclose()
    assert all(source.closed for source in sources)


async def test_cancelling_the_reader_closes_all() -> None:
    sources = [Source(0, 1, stuck=True), Source(1, 1, stuck=True)]

    async def read() -> None:
        async for _ in merged([source.chunks() for source in sources]):
            pass

    reader = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert all(source.closed for source in sources)


async def test_a_lagging_reader_holds_the_sources_back() -> None:
    source = Source(0, 10 * MAX_PENDING)
    stream = merged([source.chunks()])
    first = await anext(stream)
    for _ in range(10):
        await asyncio.sleep(0)
    assert source.sent <= len(first) + MAX_PENDING + 1
    rest = [chunk async for batch in stream for chunk in batch]
    assert len(first) + len(rest) == source.length
