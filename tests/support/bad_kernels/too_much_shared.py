"""A tile of which four stages need more shared memory than any chip has. Triton compiles it without a word."""

from collections.abc import Iterator
from dataclasses import replace

from penstock.kernels.gpu import int8_matmul
from penstock.kernels.gpu.variant import Variant


def variants(arch: str) -> Iterator[Variant]:
    good = next(int8_matmul.variants(arch))
    yield replace(good, constexprs={**good.constexprs, "BLOCK_N": 256, "BLOCK_K": 256}, num_stages=4)
