"""A `penstock serve` of our own, for as long as something is measured through it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..config import PREFIX
from ..errors import TuneError

_PATIENCE = 30.0


@contextmanager
def own_server(flags: Sequence[str]) -> Iterator[str]:
    """Its address, once it serves. It ends with this process, however that does. The user's settings in the environment are
    not its.

    Raises TuneError where it does not come up; what it says of that is on stderr.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    command = [
        sys.executable,
        "-m",
        f"{__package__}.leashed",
        "serve",
        "--port",
        "0",
        "--log-level",
        "warning",
    ]
    # Of its own session: a Ctrl-C is for this process, which then ends it.
    process = subprocess.Popen(
        [*command, *flags],
        stdin=subprocess.PIPE,  # leashed.py
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        announcement = process.stdout.readline()
        if " at http" not in announcement:
            raise TuneError(f"`penstock serve {' '.join(flags)}` did not come up.")
        yield announcement.rsplit(" at ", 1)[1].strip()
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
