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

from .arguments import FLOATS, require
from .quantize_activation import ROWS_COMPILED, row_config, scale_of, to_int8
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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x [M, K] float, weight [K] float -> y [M, K] in x's type, and with `pad_to` also its integers and scales.

    `pad_to`: also [M, K'] int8, K' being K rounded up to it with zeros behind, and [M, 1] float32.
    """
    require("x", x, (None, None), FLOATS)
    m, k = x.shape
    require("weight", weight, (k,), FLOATS, x)
    y = torch.empty(m, k, dtype=x.dtype, device=x.device)
    width = k if pad_to is None else triton.cdiv(k, pad_to) * pad_to
    quantized = scale = None
    if pad_to is not None:
        quantized = torch.empty(m, width, dtype=torch.int8, device=x.device)
        scale = torch.empty(m, 1, device=x.device)
    if y.numel():
        block = min(triton.next_power_of_2(width), MAX_BLOCK)
        pieces = triton.cdiv(width, block)
        config = row_config("rms_norm", block, pieces, x.device)
        _rms_norm_kernel[(m,)](
            x,
            weight,
            y,
            quantized,
            scale,
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
    return y, quantized, scale


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
            s = scale_of(tl.max(tl.abs(out)) + tl.sum(out * 0.0))  # NaN and infinity times zero are NaN
            tl.store(quantized + row * width + ks, to_int8(out, s), mask=ks < width)
            tl.store(scale + row, s)
    else:
        squares = 0.0
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            squares += tl.sum(value * value)
        inverse = 1.0 / tl.sqrt_rn(squares / K + eps)
        highest = 0.0
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            w = tl.load(weight + at, mask=at < K, other=0.0)
            out = _normalized(value, inverse, w, offset, y, ROUNDS_TWICE)
            tl.store(y + at, out, mask=at < K)
            out = tl.where(at < K, out.to(tl.float32), 0.0)
            highest = tl.maximum(highest, tl.max(tl.abs(out)) + tl.sum(out * 0.0), tl.PropagateNan.ALL)
        if quantized is not None:
            s = scale_of(highest)
            tl.debug_barrier()  # a thread may read what another one wrote
            for piece in range(PIECES):
                at = piece * BLOCK + ks
                out = tl.load(y + at, mask=at < K, other=0.0).to(tl.float32)
                tl.store(quantized + row * width + at, to_int8(out, s), mask=at < width)
            tl.store(scale + row, s)


def variants(arch: str) -> Iterator[Variant]:
    tensors = {"x": "*bf16", "weight": "*bf16", "y": "*bf16"}
    sizes = {"K": "i32", "width": "i32", "stride_x": "i32", "eps": "fp32", "offset": "fp32"}
    for quantizes in (False, True):
        more = {"quantized": "*i8", "scale": "*fp32"} if quantizes else {}
        missing = {} if quantizes else {"quantized": None, "scale": None}
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
