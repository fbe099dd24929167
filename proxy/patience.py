"""A time limit for each of many short waits, for the price of one timer.

`asyncio.timeout` costs 5 µs a wait, most of it for a timer that is set and taken back; this one is set once, and looks when
it rings whether anything has waited for too long.
"""

import asyncio
from types import TracebackType


class Patience:
    """`with patience:` around one wait at a time; raises TimeoutError after `seconds`, which may be changed between waits.

    To be closed.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._rings = 0.0
        self._task: asyncio.Task[object] | None = None
        self._due = 0.0
        self._expired = False

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task(self._loop)  # half the price of finding the loop anew
        self._due = self._loop.time() + self.seconds
        if self._handle is None or self._rings > self._due:
            self._set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._expired:
            self._expired = False
            assert task is not None
            # As asyncio.timeout does: somebody else may want the task to end, too.
            if task.uncancel() <= 0 and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _set(self) -> None:
        self.close()
        self._rings = self._due
        self._handle = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._handle = None
        if self._task is None:
            return  # the next wait sets it anew
        if self._loop.time() < self._due:
            self._set()
        else:
            self._expired = True
            self._task.cancel()
