"""The parent's half: engines as children in process groups of their own, and what the rest of the machine did meanwhile."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines import Engine
from environments import SCRATCH, NotAvailable

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 600.0
_living: "set[Process]" = set()


class Process:
    """A child whose output goes to a log, and whose descendants end with it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, **pipes: int
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w") as opened:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": opened.fileno()} | pipes
            self.child = subprocess.Popen(
                command,
                stderr=opened,
                text=True,
                env=os.environ | environment,
                cwd=SCRATCH,  # Not here, where folders have names that an engine may look for.
                process_group=0,
                **pipes,  # type: ignore[call-overload]
            )
        _living.add(self)

    def failed(self, doing: str) -> NotAvailable:
        last = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()][-2:]
        return NotAvailable(f"ended while {doing}: {' / '.join(last)[-400:]}")

    def wait_until_ready(self, url: str, seconds: float = START_SECONDS) -> None:
        """Returns once `url` answers 200. Raises NotAvailable, with the process ended, if it does not within `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.child.poll() is not None:
                raise self.failed("starting its server")
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.close()
        raise NotAvailable(f"its server was not ready after {seconds:.0f} s")

    def close(self) -> None:
        if self.child.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.close()  # A worker that reads the end of its questions ends by itself.
        else:
            self.child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        _living.discard(self)


def kill_all() -> None:
    """Every living Process and its descendants, at once."""
    for process in _living:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.child.pid, signal.SIGKILL)


class Worker(Process):
    """An engine loaded in a process that speaks as worker.py says.

    Attributes:
        about: version and precision, as the engine says.
        spawned: when, by time.perf_counter.
    """

    def __init__(self, engine: Engine, model: Path) -> None:
        self.spawned = time.perf_counter()
        log = SCRATCH / "logs" / f"{engine.name}.log"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        super().__init__(engine.worker(model), engine.environment, log, **pipes)
        self.about: dict[str, str] = self._answer("loading")

    def run(self, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        """Complete all prompts at once; gives the arrival of each one's tokens in seconds from being given.

        Raises NotAvailable if the engine dies, or gives another number of tokens than asked for.
        """
        assert self.child.stdin
        doing = f"completing {len(prompts)} prompts"
        try:
            self.child.stdin.write(json.dumps({"prompts": prompts, "output_tokens": output_tokens}) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError as error:
            raise self.failed(doing) from error
        arrivals: list[list[float]] = self._answer(doing)["arrivals"]
        given = sorted({len(times) for times in arrivals})
        if given != [output_tokens]:
            raise NotAvailable(f"gave {given} tokens where {output_tokens} were asked for")
        return arrivals

    def _answer(self, doing: str) -> dict[str, Any]:
        assert self.child.stdout
        line = self.child.stdout.readline()
        if not line:
            raise self.failed(doing)
        answer: dict[str, Any] = json.loads(line)
        return answer


class Server(Process):
    """An engine behind its own HTTP server, ready for requests. `url` is the base of its OpenAI routes."""

    def __init__(self, engine: Engine, model: Path) -> None:
        if engine.server is None:
            raise NotAvailable("its packages bring no HTTP server")
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = chosen.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        log = SCRATCH / "logs" / f"{engine.name}-server.log"
        super().__init__(engine.server(model, port), engine.environment, log)
        self.wait_until_ready(f"http://127.0.0.1:{port}/health")


class Meanwhile:
    """How many cores all processes but this one and its children kept busy, between `with` and its end: `others`."""

    others = 0.0

    def __enter__(self) -> "Meanwhile":
        self._begun = _clock_and_others()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, busy = (now - then for now, then in zip(_clock_and_others(), self._begun, strict=True))
        self.others = max(0.0, busy / seconds)


def _clock_and_others() -> tuple[float, float]:
    """Time, and the CPU seconds of everything but ours so far."""
    # user, nice, system, idle, iowait, irq, softirq, steal
    counts = [int(count) for count in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    busy = (sum(counts) - counts[3] - counts[4]) / TICKS
    own = time.process_time()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), busy - own - ended.ru_utime - ended.ru_stime - _living_cpu_seconds()


def _living_cpu_seconds() -> float:
    groups = {process.child.pid for process in _living}
    used = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended since the folder was read.
        if int(fields[2]) in groups:
            # Its own, and of those of its children that have ended.
            used += sum(map(int, fields[11:15]))
    return used / TICKS
