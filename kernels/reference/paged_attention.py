"""Attention over paged KV as the formula says, in float64, one row at a time; for tests."""

import torch
from torch import Tensor


def paged_attention_reference(
    query: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
    slots: list[list[int]],
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [Hq, T, D]; `slots[t]` lists the pool slots of row t's keys in order, its own last -> [T, Hq, Dv], on a CPU."""
    query, key_pool, value_pool = query.cpu(), key_pool.cpu(), value_pool.cpu()
    num_heads, num_tokens, _ = query.shape
    groups = num_heads // key_pool.shape[0]
    out = torch.empty(num_tokens, num_heads, value_pool.shape[2], dtype=torch.float64)
    for row in range(num_tokens):
        visible = slots[row][-sliding_window:] if sliding_window else slots[row]
        for head in range(num_heads):
            k = key_pool[head // groups, visible].double()
            v = value_pool[head // groups, visible].double()
            scores = (k @ query[head, row].double()) * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat([scores, sinks[head].cpu().double()[None]])
            weights = torch.softmax(scores, dim=0)[: len(visible)]
            out[row, head] = weights @ v
    return out
