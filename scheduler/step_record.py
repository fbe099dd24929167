"""Which requests the engine is computing right now, kept where it outlives the engine: its flight recorder.

When an engine dies, whoever waits for it reads who was in its last step, and so finds the request that ends engines.
"""

import contextlib
import os
from collections.abc import Iterable

SUFFIX = ".step"


class StepRecord:
    """The engine's side. The file belongs to the folder of the engine's socket, which the owner removes."""

    def __init__(self, address: str) -> None:
        self._file = os.open(address + SUFFIX, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)

    def write(self, request_ids: Iterable[str]) -> None:
        """One system call: what was written is the system's, however this process ends."""
        body = "\n".join(request_ids).encode()
        os.pwrite(self._file, len(body).to_bytes(4, "little") + body, 0)

    def close(self) -> None:
        os.close(self._file)


def last_step(address: str) -> frozenset[str]:
    """The requests in the last step of the engine that listened at `address`."""
    with contextlib.suppress(OSError), open(address + SUFFIX, "rb") as file:
        size = int.from_bytes(file.read(4), "little")
        return frozenset(file.read(size).decode(errors="replace").split("\n"))
    return frozenset()
