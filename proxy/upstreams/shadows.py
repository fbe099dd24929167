"""Calls of upstreams that nobody waits for, and how many of them there may be. Knows not what they are for.

What is drawn to be verified is served at once where such a call may be made, and asked for in the foreground where not. So
they never decide what is verified: labels of a choice sample would certify nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

# Of one process.
MAX_AT_ONCE = 4


class Shadows:
    """Of one event loop.

    Args:
        share: most calls for one trusted answer that is served; 0 makes none.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._left = 0.0
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def may_call(self) -> bool:
        """Whether the answer at hand may be served and checked."""
        return self._left + self._share >= 1 and len(self._calls) < MAX_AT_ONCE

    def served(self, *, checked: bool) -> None:
        """A trusted answer; `checked`: a call is to be made of it. What is not used is not saved up without end."""
        self._left = min(self._left + self._share, float(MAX_AT_ONCE)) - checked

    def call(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """As was told of an answer that has been served."""
        task = asyncio.create_task(self._call(work))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Gives up those under way."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _call(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._places:  # several may have been allowed before the first is called
            await work()
