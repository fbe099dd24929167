"""One compilation of one kernel: what the ahead-of-time check compiles without a GPU, and what it must find there.

Every kernel module here has a function `variants(arch)` that yields one `Variant` for each configuration it may be
launched with on that architecture, with the types and alignments of real launches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Variant:
    """What to compile, and what its machine code must look like.

    Attributes:
        name: the operation, the case and the tile, as RESOURCES.md shows it: "int8_matmul prefill 128x128x128".
        kernel: the function decorated with `triton.jit`.
        signature: Triton type of every argument that is no constexpr: "*i8", "*fp32", "i32". All pointers and integers are
            taken for divisible by 16, as in real launches, but those of `unaligned`.
        constexprs: value of every constexpr argument.
        num_warps, num_stages: as launched.
        case: the one of `tunable.py` that chose tiles, warps and stages; "" where there is nothing to choose.
        mma: the operand type its matrix instruction must have ("s8", "bf16"), or None where there is none.
        mma_rows: the constexpr that says how many rows that instruction's first operand has.
        fp_fusion: whether a product and a sum may become one rounding, as launched.
        wide_loads: whether its main loads must be 128 bits wide.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    mma: str | None = None
    mma_rows: str = "BLOCK_M"
    fp_fusion: bool = True
    unaligned: frozenset[str] = frozenset()
    wide_loads: bool = True
    case: str = ""
