"""Several chunk streams as one, by batches: whatever has arrived since the reader last asked comes at once."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from ..scheduler.outputs import Chunk

# Chunks held for a reader that lags; beyond it the sources wait, and the engine merges what piles up there.
MAX_PENDING = 256


async def merged(sources: Sequence[AsyncGenerator[Chunk, None]]) -> AsyncGenerator[list[Chunk], None]:
    """Ends when all sources have; raises the first error of any, and then closes the others.

    Closing it closes every source, and returns when that has happened.
    """
    queue: asyncio.Queue[Chunk | None] = asyncio.Queue(MAX_PENDING)

    async def pump(source: AsyncGenerator[Chunk, None]) -> None:
        async with aclosing(source):
            async for chunk in source:
                await queue.put(chunk)

    async def pump_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(pump(source))
        finally:
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]  # a task is running this
                await queue.put(None)

    pumping = asyncio.create_task(pump_all())
    try:
        over = False
        while not over:
            batch = []
            item = await queue.get()
            while item is not None:
                batch.append(item)
                if queue.empty():
                    break
                item = queue.get_nowait()
            over = item is None
            if batch:
                yield batch
        await pumping
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        pumping.cancel()
        await asyncio.wait([pumping])
