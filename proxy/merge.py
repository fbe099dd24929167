"""Several chunk streams as one, by batches: what has arrived since the reader last asked comes at once."""

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
    # A source's last item says how it ended: None for well.
    queue: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue(MAX_PENDING)

    async def pump(source: AsyncGenerator[Chunk, None]) -> None:
        try:
            async with aclosing(source):
                async for chunk in source:
                    await queue.put(chunk)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    try:
        running = len(pumps)
        while running:
            batch: list[Chunk] = []
            item = await queue.get()
            while True:
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    batch.append(item)
                if queue.empty():
                    break
                item = queue.get_nowait()
            if batch:
                yield batch
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.wait(pumps)
