"""Rotary position embedding of queries and keys in one launch.

    y[t, i]         = x[t, i] * cos[t, i] - x[t, i + R/2] * sin[t, i]
    y[t, i + R/2]   = x[t, i + R/2] * cos[t, i + R/2] + x[t, i] * sin[t, i + R/2]        for i < R/2

and channels from R on as they are. Each product is rounded to the type of x before they are added, as torch does.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import FLOATS, require
from .config import Config, choose
from .variant import Variant

HEADS = Config({}, num_warps=1, num_stages=1)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """query [Hq, T, D] and key [Hkv, T, D], strided, cos and sin [T, R] float -> both turned, contiguous as [T, H, D] in
    memory. Raises ValueError naming an argument that does not fit."""
    require("query", query, (None, None, None), FLOATS)
    (num_heads, num_tokens, head_dim), num_kv_heads = query.shape, key.shape[0]
    dtype = (str(query.dtype).removeprefix("torch."),)
    require("key", key, (None, num_tokens, head_dim), dtype, query)
    width = cos.shape[-1]
    require("cos", cos, (num_tokens, None), FLOATS, query)
    require("sin", sin, (num_tokens, width), (str(cos.dtype).removeprefix("torch."),), query)
    if width % 2 or width > head_dim:
        raise ValueError(f"cos has {width} channels; it must be even and at most the head's {head_dim}.")
    outs = [
        torch.empty(num_tokens, heads, head_dim, dtype=query.dtype, device=query.device).transpose(0, 1)
        for heads in (num_heads, num_kv_heads)
    ]
    if num_tokens:
        config = choose("rotary", "heads", HEADS, query.device)
        _rotary_kernel[(num_tokens, num_heads + num_kv_heads)](
            query,
            key,
            cos,
            sin,
            *outs,
            *query.stride()[:2],
            *key.stride()[:2],
            cos.stride(0),
            sin.stride(0),
            num_heads,
            num_kv_heads,
            HALF=width // 2,
            HEAD_DIM=head_dim,
            BLOCK_HALF=triton.next_power_of_2(max(1, width // 2)),
            BLOCK_REST=triton.next_power_of_2(head_dim - width) if head_dim > width else 0,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
    return outs[0], outs[1]


@triton.jit
def _product(a, b):
    """Rounded to a's type."""
    return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype).to(tl.float32)


@triton.jit
def _rotary_kernel(
    query,
    key,
    cos,
    sin,
    query_out,
    key_out,
    stride_query_head,
    stride_query_token,
    stride_key_head,
    stride_key_token,
    stride_cos,
    stride_sin,
    num_heads,
    num_kv_heads,
    HALF: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """One program per token and head, the queries' heads first."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if head < num_heads:
        x = query + head * stride_query_head + token * stride_query_token
        y = query_out + (token * num_heads + head) * HEAD_DIM
    else:
        head -= num_heads
        x = key + head * stride_key_head + token * stride_key_token
        y = key_out + (token * num_kv_heads + head) * HEAD_DIM
    at = tl.arange(0, BLOCK_HALF)
    inside = at < HALF
    low = tl.load(x + at, mask=inside)
    high = tl.load(x + HALF + at, mask=inside)
    cos += token * stride_cos + at
    sin += token * stride_sin + at
    turned_low = _product(low, tl.load(cos, mask=inside)) - _product(high, tl.load(sin, mask=inside))
    turned_high = _product(high, tl.load(cos + HALF, mask=inside)) + _product(
        low, tl.load(sin + HALF, mask=inside)
    )
    tl.store(y + at, turned_low.to(low.dtype), mask=inside)
    tl.store(y + HALF + at, turned_high.to(low.dtype), mask=inside)
    if BLOCK_REST:
        rest = 2 * HALF + tl.arange(0, BLOCK_REST)
        tl.store(y + rest, tl.load(x + rest, mask=rest < HEAD_DIM), mask=rest < HEAD_DIM)


def variants(arch: str) -> Iterator[Variant]:
    tensors = dict.fromkeys(("query", "key", "cos", "sin", "query_out", "key_out"), "*bf16")
    strides = ("query_head", "query_token", "key_head", "key_token", "cos", "sin")
    sizes = {**{f"stride_{name}": "i32" for name in strides}, "num_heads": "i32", "num_kv_heads": "i32"}
    for half, head_dim in ((64, 128), (32, 128)):
        rest = head_dim - 2 * half
        config = choose("rotary", "heads", HEADS, None)
        yield Variant(
            f"rotary {2 * half} of {head_dim}",
            _rotary_kernel,
            {**tensors, **sizes},
            {"HALF": half, "HEAD_DIM": head_dim, "BLOCK_HALF": half, "BLOCK_REST": rest},
            config.num_warps,
            config.num_stages,
            fp_fusion=False,
            unaligned=frozenset({"num_heads", "num_kv_heads"}),
            wide_loads=False,  # a head is 256 bytes: 8 a thread
            case="heads",
        )
