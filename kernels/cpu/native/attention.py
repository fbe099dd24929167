"""Dense attention over paged KV through the library: the rows of a step in one call per layer, without gathering."""

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...span import Span
from .library import MOST_HEAD_DIM, Attention, Pool, library, num_threads


@dataclass(slots=True)
class NativeSpans:
    """The dense rows of a step as `struct span` reads them; what it points into is kept here.

    Attributes:
        tables: int32, the block tables, one behind the other.
        structs: int64, four for each span: row, count, first position, address of its table.
        block_size: tokens in a block.
    """

    tables: "array[int]"
    structs: "array[int]"
    block_size: int

    @property
    def address(self) -> int:
        return self.structs.buffer_info()[0]

    def __len__(self) -> int:
        return len(self.structs) // 4


def can_attend(dtype: torch.dtype, widest_head: int) -> bool:
    """Whether the library is there for KV of this type and heads of at most this size."""
    return dtype in (torch.float32, torch.int8) and widest_head <= MOST_HEAD_DIM and library() is not None


def native_spans(rows: Sequence[tuple[int, Span]], block_size: int) -> NativeSpans:
    """From each span with its first row in the flat batch."""
    tables: array[int] = array("i")
    for _, span in rows:
        tables.extend(span.block_table)
    table = tables.buffer_info()[0]
    structs: array[int] = array("q")
    for row, span in rows:
        structs.extend((row, span.num_tokens, span.first_position, table))
        table += len(span.block_table) * tables.itemsize
    return NativeSpans(tables, structs, block_size)


def store_rounded(rows: Tensor, pool: Tensor, scales: Tensor, slot_mapping: Tensor) -> None:
    """Keys or values [Hkv, T, D] to their slots [T] of an INT8 pool [Hkv, num_slots, D], scales [Hkv, num_slots] float32.

    A row is kept as round_half_even(x / scale), scale = max|x| / 127; as NaN where it holds NaN or infinity.
    """
    found = library()
    assert found is not None
    rows = rows.float()
    if rows.stride(2) != 1:
        rows = rows.contiguous()
    num_heads, num_rows, dim = rows.shape
    found.penstock_store(
        ctypes.byref(Pool.of(pool, scales)),
        rows.data_ptr(),
        rows.stride(1),
        rows.stride(0),
        slot_mapping.data_ptr(),
        num_rows,
        num_heads,
        pool.shape[1],
        dim,
        num_threads(),
    )


def attend(
    query: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    spans: NativeSpans,
    out: Tensor,
    *,
    scales: tuple[Tensor, Tensor] | None = None,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    """Causal attention of the rows of `spans`: query [Hq, T, D], pools [Hkv, num_slots, D or Dv] -> out [T, Hq, Dv].

    See `paged_attention`; all float32, but INT8 pools with their `scales` [Hkv, num_slots], of keys and of values.
    """
    found = library()
    assert found is not None and query.dtype is torch.float32
    if query.stride(2) != 1:
        query = query.contiguous()
    sinks = None if sinks is None else sinks.float().contiguous()
    key_scales, value_scales = scales or (None, None)
    num_heads, _, key_dim = query.shape
    num_kv_heads, num_slots, value_dim = value_pool.shape
    attention = Attention(
        query=query.data_ptr(),
        query_row=query.stride(1),
        query_head=query.stride(0),
        out=out.data_ptr(),
        out_row=num_heads * value_dim,
        keys=Pool.of(key_pool, key_scales),
        values=Pool.of(value_pool, value_scales),
        slots=num_slots,
        sinks=None if sinks is None else sinks.data_ptr(),
        heads=num_heads,
        kv_heads=num_kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        block_size=spans.block_size,
        window=sliding_window or 0,
        scaling=scaling,
        softcap=softcap or 0.0,
        spans=spans.address,
        num_spans=len(spans),
    )
    found.penstock_attend(ctypes.byref(attention), num_threads())
