"""Per-token absmax INT8 quantization, in one pass over the bytes; alone or fused with what comes before it.

    scale[m] = max(max_k |x[m, k]|, 1e-12) / 127        xq[m, k] = round_half_even(x[m, k] / scale[m])

in float32 with IEEE division: the same integers and scales as on a CPU, bit for bit. A row with NaN or infinity gets the
scale NaN, so that it shows in the result.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import FLOATS, require
from .config import Config, choose
from .tunable import by_row
from .variant import Variant

# Wider rows are read in pieces, twice: the second time from cache.
MAX_BLOCK = 8192
# Pieces and blocks of one variant for each case.
ROWS_COMPILED = ((1, 1024), (1, 2048), (1, 4096), (1, MAX_BLOCK), (3, MAX_BLOCK))


def quantize_activation(x: Tensor, *, pad_to: int = 1) -> tuple[Tensor, Tensor]:
    """[M, K] float -> ([M, K'] int8, [M, 1] float32): K' is K rounded up to `pad_to`, zeros behind K."""
    require("x", x, (None, None), FLOATS)
    m, k = x.shape
    width = triton.cdiv(k, pad_to) * pad_to
    quantized = torch.empty(m, width, dtype=torch.int8, device=x.device)
    scale = torch.empty(m, 1, device=x.device)
    if not quantized.numel():
        return quantized, scale.fill_(1e-12 / 127)
    block = min(triton.next_power_of_2(width), MAX_BLOCK)
    pieces = triton.cdiv(width, block)
    config = row_config("quantize_activation", block, pieces, x.device)
    _quantize_kernel[(m,)](
        x,
        quantized,
        scale,
        k,
        width,
        x.stride(0),
        PIECES=pieces,
        BLOCK=block,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )
    return quantized, scale


def row_config(operation: str, block: int, pieces: int, device: torch.device | None) -> Config:
    """How rows of `pieces` of `block` values are launched, a program each; also those that other operations quantize.

    By default sixteen values a thread: two 128-bit loads of half precision.
    """
    default = Config({}, num_warps=max(1, min(16, block // (32 * 16))), num_stages=1)
    return choose(operation, by_row(block, pieces), default, device)


@triton.jit
def scale_of(highest):
    """The scale of a row whose largest absolute value is `highest`."""
    return tl.div_rn(tl.maximum(highest, 1e-12, propagate_nan=tl.PropagateNan.ALL), 127.0)


@triton.jit
def to_int8(x, scale):
    """round_half_even(x / scale). 1.5 * 2^23: from there on float32 holds whole numbers only, so that adding it rounds."""
    return ((tl.div_rn(x, scale) + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def _quantize_kernel(x, quantized, scale, K, width, stride_x, PIECES: tl.constexpr, BLOCK: tl.constexpr):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    x += row * stride_x
    quantized += row * width
    ks = tl.arange(0, BLOCK)
    if PIECES == 1:
        value = tl.load(x + ks, mask=ks < K, other=0.0).to(tl.float32)
        s = scale_of(tl.max(tl.abs(value)) + tl.sum(value * 0.0))  # NaN and infinity times zero are NaN
        tl.store(quantized + ks, to_int8(value, s), mask=ks < width)
    else:
        highest = 0.0
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            highest = tl.maximum(highest, tl.max(tl.abs(value)) + tl.sum(value * 0.0), tl.PropagateNan.ALL)
        s = scale_of(highest)
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            tl.store(quantized + at, to_int8(value, s), mask=at < width)
    tl.store(scale + row, s)


def variants(arch: str) -> Iterator[Variant]:
    for pieces, block in ROWS_COMPILED:
        config = row_config("quantize_activation", block, pieces, None)
        yield Variant(
            f"quantize_activation {pieces}x{block}",
            _quantize_kernel,
            {
                "x": "*bf16",
                "quantized": "*i8",
                "scale": "*fp32",
                "K": "i32",
                "width": "i32",
                "stride_x": "i32",
            },
            {"PIECES": pieces, "BLOCK": block},
            config.num_warps,
            config.num_stages,
            fp_fusion=False,
            case=by_row(block, pieces),
        )
