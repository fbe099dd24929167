"""Which keys the blocks of a sparse prompt keep, as the formulas say, in float64; for tests and for judging estimators.

Queries are taken by blocks of 64 positions, keys likewise, for each KV head alone. Blocks of keys are kept, the one with the
largest share of any row of any head of the group first, until every row of every head has kept `mass` of its attention. The
first block, a query block's own and the two before it are always kept.
"""

import torch
from torch import Tensor

from ..span import PROMPT_BLOCK

RECENT_BLOCKS = 2


def prompt_shares(query: Tensor, keys: Tensor, first: int, scaling: float) -> Tensor:
    """Shares of each row's attention in each block of keys: query [Hq, n, D] of the positions from `first` on, keys
    [Hkv, first + n, D] -> [Hkv, G, n, blocks]."""
    weights = _scores(query, keys, first, scaling).softmax(dim=-1)
    padded = torch.nn.functional.pad(weights, (0, -keys.shape[1] % PROMPT_BLOCK))
    return padded.view(*padded.shape[:-1], -1, PROMPT_BLOCK).sum(dim=-1)


def select_prompt_blocks(shares: Tensor, mass: float) -> Tensor:
    """[Hkv, G, n, blocks], the last block the rows' own -> [Hkv, blocks] bool, those kept."""
    num_heads, num_blocks = shares.shape[0], shares.shape[-1]
    kept = torch.zeros(num_heads, num_blocks, dtype=torch.bool)
    kept[:, 0] = kept[:, max(0, num_blocks - 1 - RECENT_BLOCKS) :] = True
    for head in range(num_heads):
        order = shares[head].amax(dim=(0, 1)).sort(descending=True, stable=True).indices.tolist()
        for block in order:
            if (shares[head][..., kept[head]].sum(dim=-1) >= mass).all():
                break
            kept[head, block] = True
    return kept


def sparse_prompt_reference(
    query: Tensor, keys: Tensor, values: Tensor, first: int, scaling: float, kept: Tensor
) -> Tensor:
    """Causal attention of one block's rows over the kept blocks [Hkv, blocks]: query [Hq, n, D] -> [Hq, n, Dv]."""
    tokens = kept.repeat_interleave(PROMPT_BLOCK, dim=1)[:, None, None, : keys.shape[1]]
    weights = _scores(query, keys, first, scaling).masked_fill(~tokens, float("-inf")).softmax(dim=-1)
    return (weights @ values.double()[:, None]).flatten(0, 1)


def _scores(query: Tensor, keys: Tensor, first: int, scaling: float) -> Tensor:
    grouped = query.double().reshape(keys.shape[0], -1, *query.shape[1:])  # [Hkv, G, n, D]
    scores = grouped @ keys.double()[:, None].transpose(2, 3) * scaling
    own = torch.arange(first, first + query.shape[1])[:, None]
    return scores.masked_fill(torch.arange(keys.shape[1]) > own, float("-inf"))
