"""Writes a step's keys and values into their pages, quantized where the pages are INT8, and renews the summaries of keys.

One program per touched granule of 16 tokens and head: it alone writes that granule, so nothing races.

INT8 pages hold round_half_even(x / scale) with scale = max|x| / 127 of one token and head.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..span import PAGE_SIZE
from .arguments import FLOATS, require
from .config import Config, choose
from .paged_batch import GRANULE, GRANULES_PER_PAGE, PagedBatch
from .quantize_activation import scale_of, to_int8
from .tunable import HEAD_SIZES, by_head
from .variant import Variant

# What a summary holds of a granule's keys, per channel.
MIN_MAX, MEAN_STD = 0, 1
STORE = Config({}, num_warps=4, num_stages=1)


def store_kv(
    key: Tensor,
    value: Tensor,
    pages: Tensor,
    scales: Tensor | None,
    summaries: Tensor | None,
    batch: PagedBatch,
    *,
    formula: int = MIN_MAX,
) -> None:
    """Store the rows' key and value [T, Hkv, D].

    Args:
        pages: [num_pages, Hkv, 2, 64, D], int8 or float; scales: [num_pages, Hkv, 2, 64] float32 for int8, else None.
        summaries: [num_pages, Hkv, 4, 2, D] float, or None; of the keys as stored.
        formula: MIN_MAX or MEAN_STD.

    Raises ValueError naming an argument that does not fit.
    """
    num_tokens, num_heads, head_dim = key.shape
    require("key", key, (None, None, None), FLOATS)
    require("value", value, (num_tokens, num_heads, head_dim), FLOATS, key)
    require("pages", pages, (None, num_heads, 2, PAGE_SIZE, head_dim), ("int8", *FLOATS), key)
    if (scales is not None) != (pages.dtype is torch.int8):
        raise ValueError(f"scales are for int8 pages, and only for them; pages are {pages.dtype}.")
    if scales is not None:
        require("scales", scales, (pages.shape[0], num_heads, 2, PAGE_SIZE), ("float32",), key)
    if summaries is not None:
        shape = (pages.shape[0], num_heads, GRANULES_PER_PAGE, 2, head_dim)
        require("summaries", summaries, shape, FLOATS, key)
    if not num_tokens:
        return
    block_d = triton.next_power_of_2(head_dim)
    config = choose("store_kv", by_head("store", block_d, scales is not None), STORE, key.device)
    _store_kernel[(batch.granules.shape[0], num_heads)](
        key,
        value,
        pages,
        scales,
        summaries,
        batch.granules,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        num_heads,
        head_dim,
        FORMULA=formula,
        BLOCK_D=block_d,
        PAGE=PAGE_SIZE,
        TOKENS=GRANULE,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )


@triton.jit
def _store_rows(x, page, scale, rows, places, new, dims, head_dim, stride_row):
    """Store one side's new rows of a granule; returns them as they are stored, in float32 [TOKENS, BLOCK_D]."""
    inside = new[:, None] & (dims < head_dim)[None, :]
    value = tl.load(x + rows[:, None].to(tl.int64) * stride_row + dims[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    at = page + places[:, None] * head_dim + dims[None, :]
    if scale is not None:
        own_scale = scale_of(tl.max(tl.abs(value), axis=1) + tl.sum(value * 0.0, axis=1))
        quantized = to_int8(value, own_scale[:, None])
        tl.store(at, quantized, mask=inside)
        tl.store(scale + places, own_scale, mask=new)
        value = quantized.to(tl.float32) * own_scale[:, None]
    else:
        stored = value.to(page.dtype.element_ty)
        tl.store(at, stored, mask=inside)
        value = stored.to(tl.float32)
    return value


@triton.jit
def _store_kernel(
    key,
    value,
    pages,
    scales,
    summaries,
    granules,
    stride_key_row,
    stride_key_head,
    stride_value_row,
    stride_value_head,
    num_heads,
    head_dim,
    FORMULA: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    entry, head = granules + tl.program_id(0) * 4, tl.program_id(1)
    granule, first_row, first_place, count = (
        tl.load(entry),
        tl.load(entry + 1),
        tl.load(entry + 2),
        tl.load(entry + 3),
    )
    places_in_granule = tl.arange(0, TOKENS)
    new = (places_in_granule >= first_place) & (places_in_granule < first_place + count)
    rows = first_row + places_in_granule - first_place
    dims = tl.arange(0, BLOCK_D)
    per_page: tl.constexpr = PAGE // TOKENS
    places = granule % per_page * TOKENS + places_in_granule
    # One side (K or V) of one head of the page.
    side = (granule // per_page).to(tl.int64) * num_heads * 2 + head * 2
    key_page, value_page = pages + side * PAGE * head_dim, pages + (side + 1) * PAGE * head_dim
    key_scale, value_scale = None, None
    if scales is not None:
        key_scale, value_scale = scales + side * PAGE, scales + (side + 1) * PAGE
    own = _store_rows(
        key + head * stride_key_head, key_page, key_scale, rows, places, new, dims, head_dim, stride_key_row
    )
    _store_rows(
        value + head * stride_value_head,
        value_page,
        value_scale,
        rows,
        places,
        new,
        dims,
        head_dim,
        stride_value_row,
    )
    if summaries is not None:
        # What was there before; what stands behind the new tokens is nobody's yet.
        old = places_in_granule < first_place
        there = old[:, None] & (dims < head_dim)[None, :]
        before = tl.load(key_page + places[:, None] * head_dim + dims[None, :], mask=there, other=0.0).to(
            tl.float32
        )
        if scales is not None:
            before *= tl.load(key_scale + places, mask=old, other=0.0)[:, None]
        keys = tl.where(new[:, None], own, before)
        known = (old | new)[:, None]
        if FORMULA == 0:
            first = tl.min(tl.where(known, keys, float("inf")), axis=0)
            second = tl.max(tl.where(known, keys, float("-inf")), axis=0)
        else:
            tokens = (first_place + count).to(tl.float32)
            first = tl.sum(tl.where(known, keys, 0.0), axis=0) / tokens
            apart = tl.where(known, keys - first[None, :], 0.0)
            second = tl.sqrt(tl.sum(apart * apart, axis=0) / tokens)
        page_of = (granule // per_page).to(tl.int64) * num_heads + head
        at = summaries + (page_of * per_page + granule % per_page) * 2 * head_dim + dims
        kind = summaries.dtype.element_ty
        tl.store(at, first.to(kind), mask=dims < head_dim)
        tl.store(at + head_dim, second.to(kind), mask=dims < head_dim)


def variants(arch: str) -> Iterator[Variant]:
    strides = ("stride_key_row", "stride_key_head", "stride_value_row", "stride_value_head")
    for kind in ("bf16", "i8"):
        int8 = kind == "i8"
        for block_d in HEAD_SIZES:
            case = by_head("store", block_d, int8)
            config = choose("store_kv", case, STORE, None)
            for formula in (MIN_MAX, MEAN_STD):
                yield Variant(
                    f"store_kv {kind} {('min/max', 'mean/std')[formula]} D={block_d}",
                    _store_kernel,
                    {
                        **dict.fromkeys(("key", "value", "summaries"), "*bf16"),
                        "pages": f"*{kind}",
                        "granules": "*i32",
                        **({"scales": "*fp32"} if int8 else {}),
                        **dict.fromkeys((*strides, "num_heads", "head_dim"), "i32"),
                    },
                    {
                        **({} if int8 else {"scales": None}),
                        "FORMULA": formula,
                        "BLOCK_D": block_d,
                        "PAGE": PAGE_SIZE,
                        "TOKENS": GRANULE,
                    },
                    config.num_warps,
                    config.num_stages,
                    fp_fusion=False,
                    unaligned=frozenset({"num_heads"}),
                    case=case,
                )
