"""Prompts over long contexts on a CPU: every block of 64 positions attends to the blocks of 64 keys that hold its attention.

All queries of a block choose together, for each KV head alone. Their scores against the INT8 copy of the keys cost a tenth
of the float products and give each row's shares almost exactly; blocks of keys are kept, those with the largest share of any
row first, until every row of every head of the group has its mass (the definition is in
`kernels/reference/sparse_prompt.py`). Cheaper estimates were tried: averaged queries, every 2nd to 16th row, antidiagonals.
They miss what a single row looks for (bench/LOG.md, 2026-11-25).

A block is computed alone and never in parts, so it depends neither on its batch-mates nor on how its prompt was cut.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..span import PROMPT_BLOCK
from .int8_product import int8_product
from .sparse_attention import GRANULE

RECENT_BLOCKS = 2
"""Before a block's own: its last 128 tokens, which are always kept, as are the first block and its own."""
GRANULES_PER_BLOCK = PROMPT_BLOCK // GRANULE
# Their scores stay in a core's cache from product to sums: 3.6 ms for 128 rows and 16,384 keys, 12 ms all at once.
ROWS_AT_ONCE = 32


@dataclass(slots=True)
class BlockSelection:
    """Blocks of keys that one KV head keeps, [n] int64 ascending, the rows' own last; the least mass of any row in them."""

    blocks: Tensor
    estimated_mass: float


def select_blocks(
    query: Tensor, quantized: Tensor, scale: Tensor, block: int, mass: float, softcap: float | None
) -> BlockSelection:
    """What the rows of block number `block` keep of one KV head.

    Args:
        query: [G, n, D] float32, scaled; the first n positions of the block.
        quantized, scale: [at least (block + 1) * 64, D] int8, [same] float32: the `KeySketch` of one head, in order.
    """
    num_keys = (block + 1) * PROMPT_BLOCK
    rows = query.shape[1]
    always = min(block, RECENT_BLOCKS) + 1 + (block > RECENT_BLOCKS)
    if always == block + 1:
        return BlockSelection(torch.arange(block + 1), 1.0)
    flat, later = query.flatten(0, 1), _later(rows).repeat(query.shape[0], 1)  # [G * n, D], [G * n, 64]
    q_scale = flat.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12).div_(127)
    q = torch.div(flat, q_scale).round_().to(torch.int8)
    shares = query.new_empty(len(flat), block + 1)
    for first in range(0, len(flat), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        scores = int8_product(q[some], quantized[:num_keys]).float()
        scores.mul_(q_scale[some]).mul_(scale[:num_keys])
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        # What lies behind a row is another's, or nobody's, and may be anything.
        scores[:, block * PROMPT_BLOCK :].masked_fill_(later[some], float("-inf"))
        weights = torch.softmax(scores, dim=-1, out=scores).view(len(scores), -1, PROMPT_BLOCK)
        torch.sum(weights, dim=-1, out=shares[some])
    rank = shares.amax(dim=0)
    rank[0] = rank[block - RECENT_BLOCKS :] = 2.0  # above any share
    order = rank.sort(descending=True, stable=True).indices
    held = shares[:, order].cumsum(dim=-1).amin(dim=0)  # [block + 1]
    count = min(max(int((held < mass).sum()) + 1, always), block + 1)
    return BlockSelection(order[:count].sort().values, float(held[count - 1]))


def granules_of(blocks: Tensor, stop: int) -> Tensor:
    """The granules of `blocks` in order, filled up to whole tiles of two; what begins at `stop` or later is granule 0."""
    granules = (blocks[:, None] * GRANULES_PER_BLOCK + torch.arange(GRANULES_PER_BLOCK)).flatten()
    granules = granules.masked_fill(granules * GRANULE >= stop, 0)
    return torch.nn.functional.pad(granules, (0, len(blocks) % 2 * GRANULES_PER_BLOCK))


def block_mask(rows: int, num_blocks: int) -> Tensor:
    """[1, rows, 64 or 128], additive, for the last keys of `granules_of`: the rows' own block and what fills up the tile."""
    own = torch.zeros(rows, PROMPT_BLOCK).masked_fill_(_later(rows), float("-inf"))
    return torch.nn.functional.pad(own, (0, num_blocks % 2 * PROMPT_BLOCK), value=float("-inf"))[None]


def _later(rows: int) -> Tensor:
    """[rows, 64] bool: which positions of a block its row does not see."""
    return torch.arange(PROMPT_BLOCK) > torch.arange(rows)[:, None]
