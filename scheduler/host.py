"""A place that clients connect to, and the child process that serves there. Imports no torch."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import TypeVar

import msgspec

from .protocol import LoadFailed, encode
from .step_record import SUFFIX

STOP_SECONDS = 5.0
# Once its model has failed to load, a server listens so long for who is still to be told.
FAREWELL_SECONDS = 1.0

Config = TypeVar("Config")


class Host:
    """Where a server runs. Clients connect to `address`, a Unix socket, before or after it is ready.

    The owner keeps the listening socket, so that the address outlives a server that has to be started again.
    """

    def __init__(self, name: str) -> None:
        folder = tempfile.mkdtemp(prefix="penstock-")
        # Also when it is never started, or nobody stops it.
        self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.address = str(Path(folder) / f"{name}.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(64)

    def start(self) -> None:
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        raise NotImplementedError

    def wait_dead(self) -> None:
        """After the link broke: give a dying server a moment to be gone, so that `alive` tells the truth."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.01)

    def fileno(self) -> int:
        """Readable while a client waits to be let in."""
        return self._listener.fileno()

    def stop(self) -> None:
        self._listener.close()
        self._remove_folder()


class ChildProcess(Host):
    """A server in a child process. It ends with its owner: its stdin is a pipe that only the owner holds.

    `module`, of this package, is its main program: argv is the listener's descriptor; stdin carries the config.
    """

    _process: subprocess.Popen[bytes] | None = None

    def __init__(self, name: str, module: str, config: msgspec.Struct) -> None:
        super().__init__(name)
        self._module = f"{__package__}.{module}"
        self._config = config

    def start(self) -> None:
        descriptor = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module, str(descriptor)],
            stdin=subprocess.PIPE,
            pass_fds=(descriptor,),
        )
        assert self._process.stdin is not None
        body = msgspec.msgpack.encode(self._config)
        self._process.stdin.write(len(body).to_bytes(4, "little") + body)
        self._process.stdin.flush()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """End the server: politely, then by force; frees the address."""
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


def inherited(config_type: type[Config]) -> tuple[Config, int, socket.socket]:
    """In the child: the config, the lifeline (a descriptor that ends when the owner does), and the listening socket."""
    stdin = sys.stdin.buffer
    size = int.from_bytes(stdin.read(4), "little")
    config = msgspec.msgpack.decode(stdin.read(size), type=config_type)
    # Not through the buffered reader: poll the descriptor itself, which ends when the owner does.
    return config, os.dup(stdin.fileno()), socket.socket(fileno=int(sys.argv[1]))


def report_failure(message: str, listener: socket.socket) -> None:
    """Tell whoever is connected or about to be; nobody may wait for a model that never comes."""
    listener.settimeout(FAREWELL_SECONDS)
    try:
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):  # it may have left already
                connection.setblocking(True)
                connection.sendall(encode(LoadFailed(message)))
    except TimeoutError:
        pass


def remove_address(listener: socket.socket) -> None:
    """In the child, when the owner is gone: killed outright, it could not tidy up what it had made."""
    address = Path(listener.getsockname())
    with contextlib.suppress(OSError):
        address.unlink(missing_ok=True)
        address.with_name(address.name + SUFFIX).unlink(missing_ok=True)
        address.parent.rmdir()
