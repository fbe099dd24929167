"""One look a second for all who watch, and none while nobody does."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import orjson

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
# Five minutes: what whoever comes later is shown of the past, and what the page draws.
KEPT_POINTS = 300

Look = dict[str, Any]


class Live:
    """Events for a page: `past`, a list of points, then `look`, one after another. Of one event loop.

    Args:
        look: what there is to see now; its "point" is kept for those who come later.
        over: the server is ending, and so are the events.
    """

    def __init__(self, look: Callable[[], Awaitable[Look]], over: Callable[[], bool]) -> None:
        self._look = look
        self._over = over
        self._points: deque[Any] = deque(maxlen=KEPT_POINTS)
        self._watching = 0
        self._task: asyncio.Task[None] | None = None
        self._latest: bytes | None = None
        self._changed = asyncio.get_running_loop().create_future()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Until the server ends. One who is slow misses looks, and delays nobody."""
        self._watching += 1
        try:
            if self._task is None:
                self._points.clear()  # there may have been nobody for an hour
                self._latest = None
                self._task = asyncio.create_task(self._run())
            seen: bytes | None = None
            yield event("past", list(self._points)[:-1])  # the last one is in the look that follows
            while self._task is not None:
                if self._latest is seen:
                    await asyncio.shield(self._changed)
                elif (seen := self._latest) is not None:
                    yield seen
        finally:
            self._watching -= 1

    async def _run(self) -> None:
        try:
            while self._watching and not self._over():
                look = await self._look()
                self._points.append(look["point"])
                self._latest = event("look", look)
                self._wake()
                await asyncio.sleep(INTERVAL_SECONDS)
        except Exception:  # those who watch come again; the server goes on
            log.exception("the dashboard's figures cannot be made")
        finally:
            self._task = None
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)


def event(name: str, value: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(value))
