"""Ctrl-C and SIGTERM wait until the step is over, so that a checkpoint can be written; or until weights are read, of which
safetensors, where it meets a KeyboardInterrupt, may lose it."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ...errors import Terminated


class Interruption:
    """Within `with`, the first signal only sets `number`; the second acts as it did before."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def raise_it(self) -> None:
        """Ends the process as the signal asks, after what was in hand is done."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise Terminated

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
