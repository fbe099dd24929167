"""RMS normalization in one pass over the bytes, quantizing its result for INT8 products on the way.

    y[m, k] = x[m, k] * rsqrt(mean_k x[m, k]^2 + eps) * (weight[k] + offset)

rounded as transformers' models round: to the type of x at the end and, where `rounds_twice`, before the weight too (Llama's
way; Gemma's is once, with an offset of 1). What is quantized is the rounded y, so the integers are those that
`quantize_activation` makes of it.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized_rows import QuantizedRows
from .arguments import FLOATS, require
from .quantize_activation import ROWS_COMPILED, empty_rows, grid_of, row_config, to_steps
from .tunable import by_row
from .variant import Variant

# Wider rows are read in pieces, from cache after the first time.
MAX_BLOCK = 8192


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    rounds_twice: bool = True,
    pad_to: int | None = None,
) -> tuple[Tensor, QuantizedRows | None]:
    """x [M, K] float, weight [K] float -> y [M, K] in x's type, and with `pad_to` also its integers.

    `pad_to`: the integers are [M, K'], K' being K rounded up to it.
    """
    require("x", x, (None, None), FLOATS)
    m, k = x.shape
    require("weight", weight, (k,), FLOATS, x)
    y = torch.empty(m, k, dtype=x.dtype, device=x.device)
    rows = None if pad_to is None else empty_rows(m, k, pad_to, y.device)
    width = k if rows is None else rows.values.shape[1]
    if y.numel():
        block = min(triton.next_power_of_2(width), MAX_BLOCK)
        pieces = triton.cdiv(width, block)
        config = row_config("rms_norm", block, pieces, x.device)
        _rms_norm_kernel[(m,)](
            x,
            weight,
            y,
            None if rows is None else rows.values,
            None if rows is None else rows.scale,
            None if rows is None else rows.zero,
            k,
            width,
            x.stride(0),
            eps,
            offset,
            ROUNDS_TWICE=rounds_twice,
            PIECES=pieces,
            BLOCK=block,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
    return y, rows


@triton.jit
def _normalized(value, inverse, weight, offset, y, ROUNDS_TWICE: tl.constexpr):
    value = value * inverse
    if ROUNDS_TWICE:
        value = value.to(y.dtype.element_ty).to(tl.float32)
    return (value * (weight.to(tl.float32) + offset)).to(y.dtype.element_ty)


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    y,
    quantized,
    scale,
    zero,
    K,
    width,
    stride_x,
    eps,
    offset,
    ROUNDS_TWICE: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    x += row * stride_x
    y += row * K
    ks = tl.arange(0, BLOCK)
    if PIECES == 1:
        value = tl.load(x + ks, mask=ks < K, other=0.0).to(tl.float32)
        inverse = 1.0 / tl.sqrt_rn(tl.sum(value * value) / K + eps)
        w = tl.load(weight + ks, mask=ks < K, other=0.0)
        out = _normalized(value, inverse, w, offset, y, ROUNDS_TWICE)
        tl.store(y + ks, out, mask=ks < K)
        if quantized is not None:
            out = tl.where(ks < K, out.to(tl.float32), 0.0)
            s, z = grid_of(tl.min(out), tl.max(out), tl.sum(out * 0.0))
            tl.store(quantized + row * width + ks, to_steps(out, s, z), mask=ks < width)
            tl.store(scale + row, s)
            tl.store(zero + row, z)
    else:
        squares = 0.0
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            squares += tl.sum(value * value)
        inverse = 1.0 / tl.sqrt_rn(squares / K + eps)
        low = 0.0
        high = 0.0
        broken = 0.0
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            w = tl.load(weight + at, mask=at < K, other=0.0)
            out = _normalized(value, inverse, w, offset, y, ROUNDS_TWICE)
            tl.store(y + at, out, mask=at < K)
            out = tl.where(at < K, out.to(tl.float32), 0.0)
            low = tl.minimum(low, tl.min(out))
            high = tl.maximum(high, tl.max(out))
            broken += tl.sum(out * 0.0)
        if quantized is not None:
            s, z = grid_of(low, high, broken)
            tl.debug_barrier()  # a thread may read what another one wrote
            for piece in range(PIECES):
                at = piece * BLOCK + ks
                out = tl.load(y + at, mask=at < K, other=0.0).to(tl.float32)
                tl.store(quantized + row * width + at, to_steps(out, s, z), mask=at < width)
            tl.store(scale + row, s)
            tl.store(zero + row, z)


def variants(arch: str) -> Iterator[Variant]:
    tensors = {"x": "*bf16", "weight": "*bf16", "y": "*bf16"}
    sizes = {"K": "i32", "width": "i32", "stride_x": "i32", "eps": "fp32", "offset": "fp32"}
    for quantizes in (False, True):
        more = {"quantized": "*i8", "scale": "*fp32", "zero": "*fp32"} if quantizes else {}
        missing = {} if quantizes else {"quantized": None, "scale": None, "zero": None}
        for pieces, block in ROWS_COMPILED:
            config = row_config("rms_norm", block, pieces, None)
            yield Variant(
                f"rms_norm{' quantizing' if quantizes else ''} {pieces}x{block}",
                _rms_norm_kernel,
                {**tensors, **more, **sizes},
                {**missing, "ROUNDS_TWICE": True, "PIECES": pieces, "BLOCK": block},
                config.num_warps,
                config.num_stages,
                fp_fusion=False,
                case=by_row(block, pieces),
            )
