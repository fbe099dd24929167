"""How a kernel is launched: tile sizes, warps, stages. Data, chosen when the engine loads, never searched for while serving.

No GPU has been measured yet, so every kernel's own default for the chip's generation serves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Config:
    """`tiles` are constexpr arguments of the kernel: {"BLOCK_M": 128, ...}."""

    tiles: Mapping[str, int]
    num_warps: int
    num_stages: int


def choose(operation: str, case: str, default: Config) -> Config:
    """`default`, as long as nothing was measured; the one place where a measured choice will come in.

    `operation` is the module's name ("int8_matmul"), `case` what the module distinguishes ("prefill", "decode_16").
    """
    return default


@cache
def arch_of(device: torch.device) -> str:
    """The generation whose defaults serve on `device`: one of those compiled ahead of time."""
    if torch.version.hip:
        return "gfx942"
    if device.type != "cuda":
        return "sm_80"
    return "sm_90" if torch.cuda.get_device_capability(device) >= (9, 0) else "sm_80"
