"""The gate of a gated MLP in one pass over the bytes, quantizing its result for INT8 products on the way.

    y[m, k] = silu(gate[m, k]) * up[m, k]        silu(g) = g / (1 + exp(-g))

rounded to the inputs' type after silu and after the product, as transformers' models round. What is quantized is the
rounded y, so the integers are those that `quantize_activation` makes of it.
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

# Wider rows are computed in pieces, and read again from cache to be quantized.
MAX_BLOCK = 8192


def silu_mul(gate: Tensor, up: Tensor, *, pad_to: int | None = None) -> tuple[Tensor, QuantizedRows | None]:
    """gate and up [M, K] float, rows any distance apart -> y [M, K], and with `pad_to` also its integers.

    `pad_to`: the integers are [M, K'], K' being K rounded up to it.
    """
    require("gate", gate, (None, None), FLOATS)
    m, k = gate.shape
    require("up", up, (m, k), (str(gate.dtype).removeprefix("torch."),), gate)
    y = torch.empty(m, k, dtype=gate.dtype, device=gate.device)
    rows = None if pad_to is None else empty_rows(m, k, pad_to, y.device)
    width = k if rows is None else rows.values.shape[1]
    if y.numel():
        block = min(triton.next_power_of_2(width), MAX_BLOCK)
        pieces = triton.cdiv(width, block)
        config = row_config("silu_mul", block, pieces, gate.device)
        _silu_mul_kernel[(m,)](
            gate,
            up,
            y,
            None if rows is None else rows.values,
            None if rows is None else rows.scale,
            None if rows is None else rows.zero,
            k,
            width,
            gate.stride(0),
            up.stride(0),
            PIECES=pieces,
            BLOCK=block,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
    return y, rows


@triton.jit
def _gated(gate, up, at, K):
    g = tl.load(gate + at, mask=at < K, other=0.0)
    u = tl.load(up + at, mask=at < K, other=0.0)
    wide = g.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(g.dtype)
    return (activated.to(tl.float32) * u.to(tl.float32)).to(g.dtype)


@triton.jit
def _silu_mul_kernel(
    gate,
    up,
    y,
    quantized,
    scale,
    zero,
    K,
    width,
    stride_gate,
    stride_up,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    gate += row * stride_gate
    up += row * stride_up
    y += row * K
    ks = tl.arange(0, BLOCK)
    if PIECES == 1:
        out = _gated(gate, up, ks, K)
        tl.store(y + ks, out, mask=ks < K)
        if quantized is not None:
            wide = out.to(tl.float32)
            s, z = grid_of(tl.min(wide), tl.max(wide), tl.sum(wide * 0.0))
            tl.store(quantized + row * width + ks, to_steps(wide, s, z), mask=ks < width)
            tl.store(scale + row, s)
            tl.store(zero + row, z)
    else:
        low = 0.0
        high = 0.0
        broken = 0.0
        for piece in range(PIECES):
            at = piece * BLOCK + ks
            out = _gated(gate, up, at, K)
            tl.store(y + at, out, mask=at < K)
            wide = out.to(tl.float32)
            low = tl.minimum(low, tl.min(wide))
            high = tl.maximum(high, tl.max(wide))
            broken += tl.sum(wide * 0.0)
        if quantized is not None:
            s, z = grid_of(low, high, broken)
            tl.debug_barrier()  # a thread may read what another one wrote
            for piece in range(PIECES):
                at = piece * BLOCK + ks
                wide = tl.load(y + at, mask=at < K, other=0.0).to(tl.float32)
                tl.store(quantized + row * width + at, to_steps(wide, s, z), mask=at < width)
            tl.store(scale + row, s)
            tl.store(zero + row, z)


def variants(arch: str) -> Iterator[Variant]:
    tensors = {"gate": "*bf16", "up": "*bf16", "y": "*bf16"}
    sizes = dict.fromkeys(("K", "width", "stride_gate", "stride_up"), "i32")
    for quantizes in (False, True):
        more = {"quantized": "*i8", "scale": "*fp32", "zero": "*fp32"} if quantizes else {}
        missing = {} if quantizes else {"quantized": None, "scale": None, "zero": None}
        for pieces, block in ROWS_COMPILED:
            config = row_config("silu_mul", block, pieces, None)
            yield Variant(
                f"silu_mul{' quantizing' if quantizes else ''} {pieces}x{block}",
                _silu_mul_kernel,
                {**tensors, **more, **sizes},
                {**missing, "PIECES": pieces, "BLOCK": block},
                config.num_warps,
                config.num_stages,
                fp_fusion=False,
                case=by_row(block, pieces),
            )
