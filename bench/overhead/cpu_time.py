"""CPU time of a process group, to the nanosecond: what /proc/PID/stat counts in hundredths of a second."""

import time
from pathlib import Path


def cpu_seconds_by_process(group: int) -> dict[int, float]:
    """User and system seconds of every living process of a group, all its threads that ever were included."""
    used = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                pid = int(status.parent.name)
                used[pid] = time.clock_gettime(_clock_of(pid))
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue  # It has ended since the folder was read.
    return used


def _clock_of(pid: int) -> int:
    """As clock_getcpuclockid gives it: the complement of the id, and CPUCLOCK_SCHED."""
    return (~pid << 3) | 2


class CpuTime:
    """What a group used between `with` and its end.

    Attributes:
        seconds: of all its processes.
        largest_share: that the busiest process had of it; 1 of a single process.
    """

    def __init__(self, group: int) -> None:
        self._group = group

    def __enter__(self) -> "CpuTime":
        self._begun = cpu_seconds_by_process(self._group)
        return self

    def __exit__(self, *_: object) -> None:
        used = [now - self._begun.get(pid, 0.0) for pid, now in cpu_seconds_by_process(self._group).items()]
        self.seconds = sum(used)
        self.largest_share = max(used, default=0.0) / self.seconds if self.seconds else 0.0
