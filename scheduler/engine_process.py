"""Starts, watches and stops an engine: a child process, or a thread for embedding. Imports no torch."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

import msgspec

from .engine_config import EngineConfig

STOP_SECONDS = 5.0


class EngineHost:
    """Where an engine runs. Clients connect to `address`, a Unix socket, before or after it is ready.

    The owner keeps the listening socket, so that the address outlives an engine that has to be started again.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        folder = tempfile.mkdtemp(prefix="penstock-")
        # Also when it is never started, or nobody stops it.
        self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.address = str(Path(folder) / "engine.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(64)

    def start(self) -> None:
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        raise NotImplementedError

    def wait_dead(self) -> None:
        """After the link broke: give a dying engine a moment to be gone, so that `alive` tells the truth."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        self._listener.close()
        self._remove_folder()


class EngineProcess(EngineHost):
    """The engine in a child process. It ends with its owner: its stdin is a pipe that only the owner holds."""

    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        descriptor = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.engine_server", str(descriptor)],
            stdin=subprocess.PIPE,
            pass_fds=(descriptor,),
        )
        assert self._process.stdin is not None
        body = msgspec.msgpack.encode(self.config)
        self._process.stdin.write(len(body).to_bytes(4, "little") + body)
        self._process.stdin.flush()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """End the engine: politely, then by force; frees the address."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        super().stop()


class EngineThread(EngineHost):
    """The same engine in a thread of this process, for embedding."""

    _thread: threading.Thread | None = None
    _lifeline: int = -1

    def start(self) -> None:
        from .engine_server import serve_engine

        reader, self._lifeline = os.pipe()

        def run() -> None:
            try:
                serve_engine(self.config, self._listener.dup(), reader)
            finally:
                os.close(reader)

        self._thread = threading.Thread(target=run, name="penstock-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            os.close(self._lifeline)
            thread.join(STOP_SECONDS)
        super().stop()
