"""What is measured of one running proxy, a sample at a time: CPU of its processes, and what its clients wait for.

CPU is the kernel's count of each process: others on the machine change it little. Whatever a clock measures they do change.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from client import Target, run_load
from cpu_time import CpuTime

FEW_CHUNKS, MANY_CHUNKS = 4, 84
BUSY_CONNECTIONS, CROWD = 16, 64
QUIET_PAUSE = 0.005
"""Seconds between requests, and between chunks, of the only client of a quiet proxy."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Figures of one sample, and times to first tokens in seconds, of which percentiles are taken over all samples."""

    figures: dict[str, float]
    first: list[float] = field(default_factory=list)


def busy(target: Target, group: int, seconds: float) -> Sampled:
    """CPU where one piece of work follows another, so that waking up is shared and caches are warm."""
    return Sampled(_cpu(target, group, seconds, "", connections=BUSY_CONNECTIONS, pause=0.0))


def quiet(target: Target, group: int, seconds: float) -> Sampled:
    """CPU where every request and every chunk wakes an idle process."""
    return Sampled(_cpu(target, group, seconds, "quiet_", connections=1, pause=QUIET_PAUSE))


def _cpu(
    target: Target, group: int, seconds: float, prefix: str, *, connections: int, pause: float
) -> dict[str, float]:
    """Microseconds of a request answered in one piece; of a stream's chunk, which is what long streams cost above short
    ones; and of a stream beside its chunks.
    """

    def one(seconds: float, chunks: int) -> float:
        with CpuTime(group) as cpu:
            seen = run_load(target, connections=connections, seconds=seconds, chunks=chunks, pause=pause)
        return cpu.seconds / seen.answered * 1e6

    request = one(seconds / 2, 0)
    short, long = one(seconds / 2, FEW_CHUNKS), one(seconds, MANY_CHUNKS)
    chunk = (long - short) / (MANY_CHUNKS - FEW_CHUNKS)
    return {
        f"{prefix}request_cpu_us": request,
        f"{prefix}chunk_cpu_us": chunk,
        f"{prefix}stream_cpu_us": short - FEW_CHUNKS * chunk,
    }


def first_token(target: Target, group: int, seconds: float) -> Sampled:
    """Streams one after another: until their first event."""
    seen = run_load(target, connections=1, seconds=seconds, chunks=FEW_CHUNKS)
    return Sampled({}, seen.first)


def crowd(target: Target, group: int, seconds: float) -> Sampled:
    """Answers in one piece for many; `busy_cores` near the number of the proxy's cores says that these limited them.

    `balanced_workers`: how many of its processes work as much as the busiest; the others wait for it.
    """
    with CpuTime(group) as cpu:
        seen = run_load(target, connections=CROWD, seconds=seconds)
    return Sampled(
        {
            "requests_s": seen.answered / seen.seconds,
            "busy_cores": cpu.seconds / seen.seconds,
            "crowd_cpu_us": cpu.seconds / seen.answered * 1e6,
            "balanced_workers": 1 / cpu.largest_share,
        }
    )


ROWS: dict[str, Callable[[Target, int, float], Sampled]] = {
    "busy": busy,
    "quiet": quiet,
    "first_token": first_token,
    "crowd": crowd,
}
