"""Attention over paged KV on a CPU: ragged prefill and decode of one flat batch in one call.

Dense rows go to the C library where it serves (`native/attention.c`). What follows is sparse attention, and everything for
other machines and types, by torch's operators, built so that a token's result is the same whatever it is computed with:
  * keys are visited in tiles of KEY_TILE absolute positions, and P @ V is one product per tile, added in order. BLAS
    splits a long reduction by its length (MKL: at 192, and in halves below 384), so one product over all keys would
    round differently in another chunk; a tile is never split;
  * a product has at least `_least_rows` rows and whole tiles as columns: below 4 rows or 12 columns MKL switches to
    kernels that sum in another order (measured: rows equal bit for bit from 4 rows up, at any row count), on an Intel
    Xeon with AVX-512 up to 2, 5, 10 and 15 rows where q @ k sums over 64, 128, 256 and 512, one where weights @ v does;
  * positions past the context are masked to exactly zero weight; adding zeros changes nothing.

What it reads past a context's end is stale but finite memory of the pool, multiplied by zero; `KVCache` starts zeroed.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..span import PROMPT_BLOCK
from .native.attention import NativeSpans, attend
from .sparse_attention import (
    GRANULE,
    SAMPLE_EVERY,
    KeySketch,
    SparseTelemetry,
    dropped_bound,
    gather_granules,
    kept_mass,
    select_granules,
    selection_mask,
)
from .sparse_prompt import block_mask, granules_of, select_blocks

KEY_TILE = 128
QUERY_BLOCK = 128
MIN_ROWS = 4
# Contexts at least this long are read in place when their blocks are one contiguous run; shorter ones are gathered
# and batched across sequences, since a dispatch then costs more than the copy.
IN_PLACE_KEYS = 512


@dataclass(slots=True)
class KeySpan:
    """Where the keys of one sequence, or of several of equal padded length, lie in the pool.

    Attributes:
        num_keys: padded length, a multiple of KEY_TILE.
        first_slot: the run's first slot when it is contiguous and read in place, else -1.
        num_own_keys: of a run in place, how many keys are in the sequence's own blocks; those behind are another's.
        block_ids: [B * num_keys / block_size] int64 otherwise.
    """

    num_keys: int
    first_slot: int = -1
    num_own_keys: int | None = None
    block_ids: Tensor | None = None


@dataclass(slots=True)
class DecodeGroup:
    """Rows [start, start + count) of the flat batch: one query each, one sequence each."""

    start: int
    count: int
    context_lens: Tensor  # [count] int64, the row's own position included
    keys: KeySpan
    sparse_mass: float | None = None  # of a group of one
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class PrefillSpan:
    """Rows [start, start + count) of the flat batch: consecutive positions of one sequence."""

    start: int
    count: int
    first_position: int
    keys: KeySpan
    sparse_mass: float | None = None  # of whole blocks of a sparse prompt
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class AttentionMetadata:
    """The step's batch as attention sees it; masks are built once a step and shared by the layers.

    Attributes:
        slot_mapping: [T] int64, where each token's K and V are written.
        dense: the rows that the C library attends to, None where it does not serve.
        decodes, prefills: the others, or all.
    """

    slot_mapping: Tensor
    dense: NativeSpans | None
    decodes: list[DecodeGroup]
    prefills: list[PrefillSpan]
    block_size: int


def padded_keys(num_keys: int) -> int:
    return -(-num_keys // KEY_TILE) * KEY_TILE


def store_kv(key: Tensor, value: Tensor, key_pool: Tensor, value_pool: Tensor, slot_mapping: Tensor) -> None:
    """Write K [Hkv, T, D] and V [Hkv, T, Dv] to their slots of the pools [Hkv, num_slots, D or Dv]."""
    key_pool.index_copy_(1, slot_mapping, key)
    value_pool.index_copy_(1, slot_mapping, value)


def paged_attention(
    query: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    metadata: AttentionMetadata,
    *,
    scales: tuple[Tensor, Tensor] | None = None,
    sketch: KeySketch | None = None,
    telemetry: SparseTelemetry | None = None,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of every row over its own sequence's keys, which must be stored already.

    Args:
        query: [Hq, T, D]; head h reads KV head h // (Hq / Hkv).
        key_pool, value_pool: [Hkv, num_slots, D], [Hkv, num_slots, Dv].
        scales: of INT8 pools, [Hkv, num_slots] float32 each; all rows must then be `dense`.
        sketch, telemetry: for groups and spans with a `sparse_mass`, which a window or sinks make dense all the same.
        scaling: multiplies q @ k.
        sliding_window: a position sees itself and the sliding_window - 1 before it.
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: [Hq] logits that take part in the softmax and then are dropped.

    Returns:
        [T, Hq, Dv]
    """
    num_heads, num_tokens, head_dim = query.shape
    num_kv_heads = key_pool.shape[0]
    groups = num_heads // num_kv_heads
    window = sliding_window or 0
    out = query.new_empty(num_tokens, num_heads, value_pool.shape[2])
    if metadata.dense is not None:
        attend(
            query,
            key_pool,
            value_pool,
            metadata.dense,
            out,
            scales=scales,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
        )
        if not metadata.decodes and not metadata.prefills:
            return out
    query = (query * scaling).view(num_kv_heads, groups, num_tokens, head_dim)
    head_sinks = None if sinks is None else sinks.float().view(num_kv_heads, groups, 1)

    for group in metadata.decodes:
        stop = group.start + group.count
        q = query[:, :, group.start : stop].transpose(1, 2).reshape(-1, groups, head_dim)  # [Hkv*B, G, D]
        if group.sparse_mass is not None and sketch is not None and not window and sinks is None:
            assert telemetry is not None
            sparse = _attend_sparsely(q, key_pool, value_pool, sketch, group, metadata, softcap, telemetry)
            if sparse is not None:
                out[group.start] = sparse.reshape(num_heads, -1)
                continue
        k, v = _read(key_pool, group.keys, metadata), _read(value_pool, group.keys, metadata)
        mask = group.masks.get((window, num_kv_heads))
        if mask is None:
            mask = _decode_mask(group, window).repeat(num_kv_heads, 1, 1)
            group.masks[window, num_kv_heads] = mask
        sink = None
        if head_sinks is not None:
            sink = head_sinks.expand(-1, -1, group.count).transpose(1, 2).reshape(-1, groups, 1)
        o = _attend(q, k, v, mask, groups, softcap, sink, group.keys.num_own_keys)  # [Hkv*B, G, Dv]
        o = o.view(num_kv_heads, group.count, groups, -1).transpose(0, 1)
        out[group.start : stop] = o.reshape(group.count, num_heads, -1)

    for span in metadata.prefills:
        if span.sparse_mass is not None and sketch is not None and not window and sinks is None:
            assert telemetry is not None
            rows = slice(span.start, span.start + span.count)
            q = query[:, :, rows]
            out[rows] = _prefill_sparsely(q, key_pool, value_pool, sketch, span, metadata, softcap, telemetry)
            continue
        k, v = _read(key_pool, span.keys, metadata), _read(value_pool, span.keys, metadata)
        for first in range(0, span.count, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, span.count)
            num_keys = padded_keys(span.first_position + last)
            block = query[:, :, span.start + first : span.start + last]
            q = block.reshape(num_kv_heads, -1, head_dim)  # [Hkv, G*n, D]
            mask = span.masks.get((window, first))
            if mask is None:
                mask = span.masks[window, first] = _prefill_mask(span, first, last, num_keys, window)
            sink = None
            if head_sinks is not None:
                sink = head_sinks.expand(-1, -1, last - first).reshape(num_kv_heads, -1, 1)
            k_block, v_block = k[:, :num_keys], v[:, :num_keys]
            o = _attend(q, k_block, v_block, mask, last - first, softcap, sink, span.keys.num_own_keys)
            o = o.view(num_kv_heads, groups, last - first, -1).permute(2, 0, 1, 3)
            out[span.start + first : span.start + last] = o.reshape(last - first, num_heads, -1)
    return out


def _attend_sparsely(
    q: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    sketch: KeySketch,
    group: DecodeGroup,
    metadata: AttentionMetadata,
    softcap: float | None,
    telemetry: SparseTelemetry,
) -> Tensor | None:
    """One row's q [Hkv, G, D], scaled -> [Hkv, G, Dv], or None where dense attention is the better choice."""
    assert group.count == 1 and group.sparse_mass is not None
    keys, context_len = group.keys, int(group.context_lens)
    own = KeySketch(
        _read(sketch.quantized, keys, metadata), _read(sketch.scale[..., None], keys, metadata).squeeze(-1)
    )
    q = q.float()
    selection = select_granules(q, own, context_len, group.sparse_mass, softcap)
    telemetry.rows += 1
    telemetry.context_tokens += context_len
    if selection is None:
        telemetry.fallbacks += 1
        telemetry.kept_tokens += context_len
        telemetry.estimated_mass += 1.0
        return None
    telemetry.kept_tokens += int(selection.counts.max()) * GRANULE
    telemetry.estimated_mass += selection.estimated_mass
    if telemetry.rows % SAMPLE_EVERY == 1:
        telemetry.sampled_rows += 1
        whole = _read(key_pool, keys, metadata).float()
        telemetry.sampled_mass += kept_mass(q, whole, selection, context_len, softcap)
        telemetry.bounded_rows += 1
        telemetry.dropped_bound += dropped_bound(q, whole, selection, context_len, softcap)
    places = _granules_in_pool(selection.granules, keys, metadata.block_size)
    k, v = gather_granules(key_pool, places), gather_granules(value_pool, places)
    return _attend(q.to(k.dtype), k, v, selection_mask(selection, context_len), 1, softcap, None, None)


def _prefill_sparsely(
    query: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    sketch: KeySketch,
    span: PrefillSpan,
    metadata: AttentionMetadata,
    softcap: float | None,
    telemetry: SparseTelemetry,
) -> Tensor:
    """A span of a sparse prompt, block by block: query [Hkv, G, n, D], scaled -> [n, Hq, Dv]."""
    assert span.sparse_mass is not None
    num_kv_heads, groups, count, _ = query.shape
    quantized = _read(sketch.quantized, span.keys, metadata)
    scale = _read(sketch.scale[..., None], span.keys, metadata).squeeze(-1)
    out = query.new_empty(num_kv_heads, groups, count, value_pool.shape[2])
    for first in range(0, count, PROMPT_BLOCK):
        rows = slice(first, min(first + PROMPT_BLOCK, count))
        block, stop = (span.first_position + first) // PROMPT_BLOCK, span.first_position + rows.stop
        for head in range(num_kv_heads):
            one = slice(head, head + 1)
            q = query[head, :, rows]
            chosen = select_blocks(q.float(), quantized[head], scale[head], block, span.sparse_mass, softcap)
            num_blocks = len(chosen.blocks)
            places = _granules_in_pool(granules_of(chosen.blocks, stop), span.keys, metadata.block_size)
            k, v = (gather_granules(pool[one], places[None]) for pool in (key_pool, value_pool))
            num_rows = rows.stop - first
            mask = block_mask(num_rows, num_blocks)
            o = _attend(q.reshape(1, groups * num_rows, -1), k, v, mask, num_rows, softcap, None, None)
            out[head, :, rows] = o.view(groups, num_rows, -1)
            telemetry.prompt_blocks += 1
            telemetry.prompt_kept_tokens += num_blocks * PROMPT_BLOCK - (PROMPT_BLOCK - num_rows)
            telemetry.prompt_context_tokens += stop
            telemetry.prompt_estimated_mass += chosen.estimated_mass
    return out.permute(2, 0, 1, 3).reshape(count, num_kv_heads * groups, -1)


def _granules_in_pool(granules: Tensor, keys: KeySpan, block_size: int) -> Tensor:
    """Where a sequence's granules lie in the pool."""
    if keys.block_ids is None:
        return granules + keys.first_slot // GRANULE
    per_block = block_size // GRANULE
    return keys.block_ids[granules // per_block] * per_block + granules % per_block


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    rows: int,
    softcap: float | None,
    sink: Tensor | None,
    num_own_keys: int | None,
) -> Tensor:
    """Softmax(q @ k + mask) @ v by whole key tiles.

    q [H, R, D], k [H, S, D], v [H, S, Dv], sink [H, R, 1] or None; `mask` is additive, [1 or H, 1 or `rows`, n] for the
    last n keys, and repeats over R / rows. Keys from `num_own_keys` on are another's, and may be anything, even NaN.
    Returns [H, R, Dv].
    """
    heads, num_rows, _ = q.shape
    if (missing := _least_rows(q.shape[2]) - num_rows) > 0:
        q = torch.nn.functional.pad(q, (0, 0, 0, missing))
    scores = torch.bmm(q, k.transpose(1, 2))  # [H, R', S]
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    own = scores.shape[2] if num_own_keys is None else num_own_keys
    if own < scores.shape[2]:
        scores[:, :, own:] = float("-inf")
    masked = scores[:, :num_rows].view(heads, -1, rows, scores.shape[2])[
        ..., scores.shape[2] - mask.shape[2] :
    ]
    masked.add_(mask[:, None])
    if sink is None:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        weights = _softmax_with_sink(scores, torch.nn.functional.pad(sink, (0, 0, 0, q.shape[1] - num_rows)))
    weights = weights.to(v.dtype)
    tiles = scores.shape[2] // KEY_TILE
    if tiles == 1:
        return torch.bmm(weights, _own_only(v, own))[:, :num_rows]
    partial = v.new_empty(tiles, heads, q.shape[1], v.shape[2])
    for tile in range(tiles):
        keys = slice(tile * KEY_TILE, (tile + 1) * KEY_TILE)
        torch.bmm(weights[:, :, keys], _own_only(v[:, keys], own - keys.start), out=partial[tile])
    return partial.sum(dim=0)[:, :num_rows]


def _least_rows(key_dim: int) -> int:
    return max(MIN_ROWS, -(-key_dim // 16))


def _own_only(v: Tensor, own: int) -> Tensor:
    """`v` [H, S, Dv] with zeros from key `own` on: zero weights would not silence a NaN."""
    if own >= v.shape[1]:
        return v
    v = v.clone()
    v[:, own:] = 0
    return v


def _softmax_with_sink(scores: Tensor, sink: Tensor) -> Tensor:
    scores = scores.float()
    highest = torch.maximum(scores.amax(dim=-1, keepdim=True), sink)
    weights = torch.exp(scores - highest)
    return weights / (weights.sum(dim=-1, keepdim=True) + torch.exp(sink - highest))


def _read(pool: Tensor, keys: KeySpan, metadata: AttentionMetadata) -> Tensor:
    """[Hkv, num_slots, D] -> [Hkv * B, num_keys, D], a view where the keys are one run."""
    if keys.block_ids is None:
        return pool[:, keys.first_slot : keys.first_slot + keys.num_keys]
    num_heads, _, head_dim = pool.shape
    blocks = pool.view(num_heads, -1, metadata.block_size * head_dim)
    return blocks.index_select(1, keys.block_ids).view(-1, keys.num_keys, head_dim)


def _decode_mask(group: DecodeGroup, window: int) -> Tensor:
    """[B, 1, S]: 0 where visible, -inf elsewhere."""
    positions = torch.arange(group.keys.num_keys)
    hidden = positions >= group.context_lens[:, None]
    if window:
        hidden |= positions < group.context_lens[:, None] - window
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None]


def _prefill_mask(span: PrefillSpan, first: int, last: int, num_keys: int, window: int) -> Tensor:
    """[1, n, m] for the last m keys: those from the block's first position on, or all under a window."""
    own = torch.arange(span.first_position + first, span.first_position + last)[:, None]
    positions = torch.arange(0 if window else span.first_position + first, num_keys)
    hidden = positions > own
    if window:
        hidden |= positions <= own - window
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[None]
