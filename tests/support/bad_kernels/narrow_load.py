"""Reads pointers that nobody promised to be aligned: a value at a time."""

from collections.abc import Iterator

import triton
import triton.language as tl

from penstock.kernels.gpu.variant import Variant


@triton.jit
def _copy_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))


def variants(arch: str) -> Iterator[Variant]:
    signature = {"x": "*fp32", "out": "*fp32"}
    yield Variant("copy", _copy_kernel, signature, {"BLOCK": 1024}, 4, 1, unaligned=frozenset({"x"}))
