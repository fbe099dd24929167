"""Processes by a name that no other ever has: pid and start time."""

import os
from pathlib import Path


def process_name() -> str:
    """Of this one; what is forked from it has another."""
    return f"{os.getpid()}:{_started(os.getpid()) or 0}"


def is_alive(name: str) -> bool:
    """Whether a process of this machine still runs; what has ended and only waits for its parent does not."""
    pid, _, started = name.partition(":")
    if Path("/proc/self/stat").exists():
        return (_started(int(pid)) or 0) == int(started)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def boot_name() -> str:
    """Of this run of the machine's; empty where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Clock ticks since boot; None when it has ended, or /proc is not there."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command's name, in parentheses, may hold anything.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
