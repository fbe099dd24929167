"""How a kernel is launched: tile sizes, warps, stages. Data, chosen when the engine loads, never searched for while serving.

Measured choices are kept per GPU name in `kernels/tuned/`; where there is none, a kernel's own default for the chip's
generation serves.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """`tiles` are constexpr arguments of the kernel: {"BLOCK_M": 128, ...}."""

    tiles: Mapping[str, int]
    num_warps: int
    num_stages: int


def choose(operation: str, case: str, default: Config) -> Config:
    """The configuration measured for this GPU, or `default`.

    `operation` is the module's name ("int8_matmul"), `case` what the module distinguishes ("prefill", "decode_16").
    """
    return default
