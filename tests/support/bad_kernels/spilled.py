"""A tile whose sums do not fit into the registers of its one warp group."""

from collections.abc import Iterator
from dataclasses import replace

from penstock.kernels.gpu import int8_matmul
from penstock.kernels.gpu.variant import Variant


def variants(arch: str) -> Iterator[Variant]:
    good = next(int8_matmul.variants(arch))
    yield replace(
        good,
        constexprs={**good.constexprs, "BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 32},
        num_warps=4,
        num_stages=2,
    )
