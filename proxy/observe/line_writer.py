"""Lines on their way to a file descriptor, without the event loop ever waiting for it.

Lines gather in a list; a moment after the first, all of them go to a thread that writes them. So a line costs an append:
no lock, no system call, no waking of anybody.
"""

import asyncio
import logging
import os
import threading
import time
from contextlib import suppress
from functools import cached_property
from queue import SimpleQueue

log = logging.getLogger(__name__)

GATHERING_SECONDS = 0.1
# A pipe takes so much in one piece: lines of several workers do not mix.
PIECE_BYTES = 4096
# Of a reader that has stopped reading.
MAX_WAITING_BYTES = 16 << 20
CLOSING_SECONDS = 1.0
_FULL_SECONDS = 0.05


class LineWriter:
    """Of one event loop. What comes when `MAX_WAITING_BYTES` wait already is dropped, and that is logged.

    A process that is killed loses the lines of its last `GATHERING_SECONDS`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._waiting = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._batches: SimpleQueue[list[bytes] | None] = SimpleQueue()
        # A daemon: a reader that has stopped reading must not keep the process from ending.
        self._thread = threading.Thread(target=self._write_batches, name="penstock-lines", daemon=True)

    def write(self, line: bytes) -> None:
        if self._waiting + len(line) > MAX_WAITING_BYTES:
            self._dropped += 1
            return
        self._waiting += len(line)
        self._lines.append(line)
        if self._timer is None and self._idle.is_set():
            self._timer = self._loop.call_later(GATHERING_SECONDS, self._flush)

    async def close(self) -> None:
        """Writes what waits, for `CLOSING_SECONDS` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await self._idle.wait()
                if self._lines:
                    self._flush()
                    await self._idle.wait()
        if self._timer is not None:
            self._timer.cancel()
        self._batches.put(None)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        self._thread.start()
        return asyncio.get_running_loop()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        lines, self._lines, self._timer = self._lines, [], None
        if self._dropped:
            log.warning("%d lines of the access log were dropped: nobody reads it", self._dropped)
            self._dropped = 0
        self._idle.clear()
        self._batches.put(lines)

    def _written(self, size: int, error: OSError | None) -> None:
        self._idle.set()
        self._waiting -= size
        if error is not None:
            log.error("the access log cannot be written: %s", error)
        if self._lines:
            self._timer = self._loop.call_later(GATHERING_SECONDS, self._flush)

    def _write_batches(self) -> None:
        """The thread."""
        while (lines := self._batches.get()) is not None:
            failure = None
            try:
                _write(self._descriptor, lines)
            except OSError as error:
                failure = error
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._written, sum(map(len, lines)), failure)


def _write(descriptor: int, lines: list[bytes]) -> None:
    """Whole lines, in pieces that a pipe takes at once."""
    piece = bytearray()
    for line in lines:
        if piece and len(piece) + len(line) > PIECE_BYTES:
            _write_all(descriptor, piece)
            piece.clear()
        piece += line
    _write_all(descriptor, piece)


def _write_all(descriptor: int, data: bytearray) -> None:
    rest = memoryview(bytes(data))
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # whoever gave us the descriptor shares its flags
            time.sleep(_FULL_SECONDS)
