"""INT8 quantization by row, in one pass over the bytes; of activations alone or fused with what comes before it.

Activations become what `kernels.quantized_rows` defines. Weights are rounded around zero:

    scale[n] = max(max_k |w[n, k]|, 1e-12) / 127        wq[n, k] = round_half_even(w[n, k] / scale[n])

in float32 with IEEE division: the same integers, scales and zeros as on a CPU, bit for bit. A row with NaN or infinity gets
the scale NaN, so that it shows in the result.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized_rows import QuantizedRows
from .arguments import FLOATS, require
from .config import Config, choose
from .tunable import by_row
from .variant import Variant

# Wider rows are read in pieces, twice: the second time from cache.
MAX_BLOCK = 8192
# Pieces and blocks of one variant for each case.
ROWS_COMPILED = ((1, 1024), (1, 2048), (1, 4096), (1, MAX_BLOCK), (3, MAX_BLOCK))


def quantize_activation(x: Tensor, *, pad_to: int = 1) -> QuantizedRows:
    """[M, K] float -> [M, K'] integers: K' is K rounded up to `pad_to`."""
    require("x", x, (None, None), FLOATS)
    m, k = x.shape
    rows = empty_rows(m, k, pad_to, x.device)
    _quantize(x, rows.values, rows.scale, rows.zero)
    return rows


def quantize_weight(weight: Tensor, *, pad_to: int = 1) -> tuple[Tensor, Tensor]:
    """[N, K] float -> ([N, K'] int8, [N, 1] float32 scale): K' is K rounded up to `pad_to`, zeros behind K."""
    require("weight", weight, (None, None), FLOATS)
    n, k = weight.shape
    quantized = torch.empty(n, triton.cdiv(k, pad_to) * pad_to, dtype=torch.int8, device=weight.device)
    scale = torch.empty(n, 1, device=weight.device)
    _quantize(weight, quantized, scale, None)
    return quantized, scale


def empty_rows(m: int, k: int, pad_to: int, device: torch.device) -> QuantizedRows:
    """For a kernel to fill: `m` rows of `k` integers and as many more as make whole `pad_to`s."""
    return QuantizedRows(
        values=torch.empty(m, triton.cdiv(k, pad_to) * pad_to, dtype=torch.int8, device=device),
        scale=torch.empty(m, 1, device=device),
        zero=torch.empty(m, 1, device=device),
    )


def _quantize(x: Tensor, quantized: Tensor, scale: Tensor, zero: Tensor | None) -> None:
    (m, k), width = x.shape, quantized.shape[1]
    if not quantized.numel():
        scale.fill_(1.0)  # whatever it is, it is multiplied with nothing
        return
    block = min(triton.next_power_of_2(width), MAX_BLOCK)
    pieces = triton.cdiv(width, block)
    config = row_config("quantize_activation", block, pieces, x.device)
    _quantize_kernel[(m,)](
        x,
        quantized,
        scale,
        zero,
        k,
        width,
        x.stride(0),
        PIECES=pieces,
        BLOCK=block,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )


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
def grid_of(low, high, broken):
    """The scale and the zero of a row from `low` to `high`; `broken`: the sum of its values times 0, NaN where one is not
    finite."""
    low, high = tl.minimum(low, 0.0), tl.maximum(high, 0.0)
    scale = tl.maximum(tl.div_rn(high - low, 255.0), 1e-14)
    zero = -128.0 - ((tl.div_rn(low, scale) + 12582912.0) - 12582912.0)
    return scale + broken, zero


@triton.jit
def to_steps(x, scale, zero):
    """Whole steps of `scale`, of which `zero` stands for 0."""
    steps = (tl.div_rn(x, scale) + zero + 12582912.0) - 12582912.0
    return tl.minimum(steps, 127.0).to(tl.int8)


@triton.jit
def _quantize_kernel(
    x, quantized, scale, zero, K, width, stride_x, PIECES: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per row; around zero where `zero` is None."""
    row = tl.program_id(0).to(tl.int64)
    x += row * stride_x
    quantized += row * width
    ks = tl.arange(0, BLOCK)
    if PIECES == 1:
        value = tl.load(x + ks, mask=ks < K, other=0.0).to(tl.float32)
        s, z = _grid(tl.min(value), tl.max(value), tl.sum(value * 0.0), zero)
        _store(quantized + ks, value, s, z, ks < width, zero)
    else:
        low = 0.0
        high = 0.0
        broken = 0.0
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            low = tl.minimum(low, tl.min(value))
            high = tl.maximum(high, tl.max(value))
            broken += tl.sum(value * 0.0)
        s, z = _grid(low, high, broken, zero)
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            _store(quantized + at, value, s, z, at < width, zero)
    tl.store(scale + row, s)
    if zero is not None:
        tl.store(zero + row, z)


@triton.jit
def _grid(low, high, broken, zero):
    if zero is None:
        return scale_of(tl.maximum(high, -low)) + broken, 0.0
    else:
        return grid_of(low, high, broken)


@triton.jit
def _store(quantized, value, scale, zero_point, inside, zero):
    if zero is None:
        tl.store(quantized, to_int8(value, scale), mask=inside)
    else:
        tl.store(quantized, to_steps(value, scale, zero_point), mask=inside)


def variants(arch: str) -> Iterator[Variant]:
    tensors = {"x": "*bf16", "quantized": "*i8", "scale": "*fp32"}
    sizes = dict.fromkeys(("K", "width", "stride_x"), "i32")
    for name, zero, missing in (
        ("quantize_activation", {"zero": "*fp32"}, {}),
        ("quantize_activation of weights", {}, {"zero": None}),
    ):
        for pieces, block in ROWS_COMPILED:
            config = row_config("quantize_activation", block, pieces, None)
            yield Variant(
                f"{name} {pieces}x{block}",
                _quantize_kernel,
                {**tensors, **zero, **sizes},
                {**missing, "PIECES": pieces, "BLOCK": block},
                config.num_warps,
                config.num_stages,
                fp_fusion=False,
                case=by_row(block, pieces),
            )
