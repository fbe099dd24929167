"""Decoding over long contexts on a CPU: attends to the keys that hold a given share of the attention, and reads no others.

A copy of the keys in INT8, an eighth of the bytes of float32 keys and values, gives every token's share of the attention
almost exactly; granules of 16 tokens are kept until every head of a group has its mass (the definition is in
`kernels/reference/sparse_attention.py`), gathered, and attended to in full precision. Summaries of a granule by its extremes
or by mean and deviation are smaller still, but on the keys of trained models they kept 0.49 to 0.75 of the mass when asked
for 0.95, INT8 keys 0.98 (bench/LOG.md, 2026-11-24).

A row is computed alone and from its own keys, so it does not depend on its batch-mates.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .int8_product import int8_product

GRANULE = 16
RECENT_TOKENS = 128
# Products are over whole key tiles of this many granules.
TILE_GRANULES = 8
# Gathering costs about as much as reading in place twice: with more than this share kept, dense is faster, and exact.
MOST_KEPT = 0.5
# Every so many sparse rows and layers the mass really kept is computed, at the cost of one dense product.
SAMPLE_EVERY = 512


@dataclass(slots=True)
class KeySketch:
    """The keys of one layer in INT8, slot by slot: `quantized` [Hkv, num_slots, D], `scale` [Hkv, num_slots] float32."""

    quantized: Tensor
    scale: Tensor

    def store(self, key: Tensor, slot_mapping: Tensor) -> None:
        """key [Hkv, T, D] to its slots."""
        scale = key.abs().amax(dim=-1, keepdim=True).float().clamp_min_(1e-12).div_(127)
        self.quantized.index_copy_(1, slot_mapping, torch.div(key, scale).round_().to(torch.int8))
        self.scale.index_copy_(1, slot_mapping, scale.squeeze(-1))


@dataclass(slots=True)
class SparseTelemetry:
    """Sums since the start, over rows and layers.

    Attributes:
        rows: decided; kept_tokens of context_tokens were attended to.
        fallbacks: rows of these that were computed densely, since more than half would have been kept.
        estimated_mass: sum over rows of the least mass kept of any head, by the estimate.
        sampled_rows, sampled_mass: the same, truly, where it was computed.
        bounded_rows, dropped_bound: where it was computed, what summaries of 16 keys can prove: the most attention that any
            head can have dropped.
        prompt_blocks: of sparse prompts, 64 queries and a KV head each; they attended to prompt_kept_tokens of
            prompt_context_tokens, and prompt_estimated_mass sums the least mass kept of any row.
    """

    rows: int = 0
    fallbacks: int = 0
    kept_tokens: int = 0
    context_tokens: int = 0
    estimated_mass: float = 0.0
    sampled_rows: int = 0
    sampled_mass: float = 0.0
    bounded_rows: int = 0
    dropped_bound: float = 0.0
    prompt_blocks: int = 0
    prompt_kept_tokens: int = 0
    prompt_context_tokens: int = 0
    prompt_estimated_mass: float = 0.0


@dataclass(slots=True)
class Selection:
    """Granules of one row, best first, `granules` [Hkv, n]; head h keeps the first `counts[h]` of its row."""

    granules: Tensor
    counts: Tensor
    estimated_mass: float = field(default=0.0)


def select_granules(
    query: Tensor, sketch: KeySketch, context_len: int, mass: float, softcap: float | None
) -> Selection | None:
    """What one row keeps; None when that is too much to be worth it.

    Args:
        query: [Hkv, G, D] float32, scaled.
        sketch: of the row's keys in order, padded to whole tiles.
    """
    num_keys = sketch.scale.shape[1]
    q_scale = query.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12).div_(127)
    q = torch.div(query, q_scale).round_().to(torch.int8)
    raw = torch.stack(
        [int8_product(own, keys) for own, keys in zip(q.unbind(), sketch.quantized.unbind(), strict=True)]
    )
    scores = raw.float().mul_(q_scale).mul_(sketch.scale[:, None])  # [Hkv, G, N]
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    scores[:, :, context_len:] = float("-inf")
    shares = scores.softmax(dim=-1).view(*scores.shape[:2], -1, GRANULE).sum(dim=-1)  # [Hkv, G, N / 16]
    rank = shares.amax(dim=1)
    first_recent = max(0, context_len - RECENT_TOKENS) // GRANULE
    last = -(-context_len // GRANULE)
    always = last - first_recent + (first_recent > 0)
    rank[:, 0] = rank[:, first_recent:last] = 2.0  # above any share
    order = rank.sort(dim=-1, descending=True, stable=True).indices
    reached = shares.gather(2, order[:, None].expand_as(shares)).cumsum(dim=-1).amin(dim=1)  # [Hkv, N / 16]
    counts = ((reached < mass).sum(dim=-1) + 1).clamp_(always, last)
    most = int(counts.max())
    if most * GRANULE > MOST_KEPT * context_len:
        return None
    padded = -(-most // TILE_GRANULES) * TILE_GRANULES
    assert padded * GRANULE <= num_keys
    estimated = float(reached.gather(1, counts[:, None] - 1).min())
    return Selection(order[:, :padded], counts, estimated)


def selection_mask(selection: Selection, context_len: int) -> Tensor:
    """[Hkv, 1, n * 16]: 0 where kept, -inf for what only fills up tiles or lies past the context."""
    ranks = torch.arange(selection.granules.shape[1])
    dropped = (ranks >= selection.counts[:, None])[:, :, None]
    past = selection.granules[:, :, None] * GRANULE + torch.arange(GRANULE) >= context_len
    hidden = (dropped | past).flatten(1)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None]


def gather_granules(pool: Tensor, granules: Tensor) -> Tensor:
    """pool [Hkv, num_slots, D], granules of the pool [Hkv, n] -> [Hkv, n * 16, D]."""
    num_heads, num_slots, head_dim = pool.shape
    per_head = num_slots // GRANULE
    rows = (granules + torch.arange(num_heads)[:, None] * per_head).flatten()
    picked = pool.view(num_heads * per_head, GRANULE * head_dim).index_select(0, rows)
    return picked.view(num_heads, -1, head_dim)


def kept_mass(
    query: Tensor, keys: Tensor, selection: Selection, context_len: int, softcap: float | None
) -> float:
    """The mass that a selection truly keeps, the least of all heads: query [Hkv, G, D] scaled, keys [Hkv, N, D]."""
    scores = torch.bmm(query, keys.transpose(1, 2))[:, :, :context_len]
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    weights = torch.nn.functional.pad(scores.softmax(dim=-1), (0, -context_len % GRANULE))
    shares = weights.view(*weights.shape[:2], -1, GRANULE).sum(dim=-1)  # [Hkv, G, N / 16]
    ranks = torch.arange(selection.granules.shape[1])
    least = 1.0
    for head, granules in enumerate(selection.granules):
        kept = granules[ranks < selection.counts[head]]
        least = min(least, float(shares[head][:, kept].sum(dim=-1).min()))
    return least


def dropped_bound(
    query: Tensor, keys: Tensor, selection: Selection, context_len: int, softcap: float | None
) -> float:
    """The most mass that a selection can have dropped, of any head, by the least and largest key of each granule.

    With B = sum over dropped granules of 16 exp(U - LSE of the kept), U the highest score the extremes allow: B / (1 + B).
    The output errs by at most twice this times the longest value. Loose, so it is watched, not chosen by. Arguments as of
    `kept_mass`.
    """
    granules = keys.view(keys.shape[0], -1, GRANULE, keys.shape[2])  # [Hkv, N / 16, 16, D]
    low, high = granules.amin(dim=2), granules.amax(dim=2)
    highest = torch.bmm(query.clamp(min=0), high.transpose(1, 2)) + torch.bmm(
        query.clamp(max=0), low.transpose(1, 2)
    )
    scores = torch.bmm(query, keys.transpose(1, 2))
    if softcap is not None:
        highest, scores = (x.div_(softcap).tanh_().mul_(softcap) for x in (highest, scores))
    # Granules that are not stored whole are recent, and never dropped.
    kept = torch.zeros(granules.shape[:2], dtype=torch.bool)
    ranks = torch.arange(selection.granules.shape[1])
    for head, chosen in enumerate(selection.granules):
        kept[head, chosen[ranks < selection.counts[head]]] = True
    dropped = ~kept
    dropped[:, -(-context_len // GRANULE) :] = False
    visible = kept.repeat_interleave(GRANULE, dim=1)
    visible[:, context_len:] = False
    lse = scores.masked_fill(~visible[:, None], float("-inf")).logsumexp(dim=-1)  # [Hkv, G]
    most = highest.masked_fill(~dropped[:, None], float("-inf")).logsumexp(dim=-1) + math.log(GRANULE)
    return float((most - lse).sigmoid().max())
