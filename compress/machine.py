"""The machine that a measurement was made on, in one line; and how much of it is used."""

import platform
from pathlib import Path

import torch


def machine(device: str = "cpu") -> str:
    """`device`: "cpu", or "cuda" for the current GPU."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def use_threads(count: int | None) -> None:
    """Of the CPU, for all that torch computes from here on; None: as many as it takes by itself."""
    if count is not None:
        torch.set_num_threads(count)
