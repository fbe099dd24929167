"""What is still to be kept, and learnt, of replies that have ended: no client waits for it, a server that stops does."""

import asyncio
from collections.abc import Coroutine
from typing import Any

SETTLING_SECONDS = 1.0


class Settling:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Waits for `SETTLING_SECONDS` at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SETTLING_SECONDS)
