"""Which rows an expert computes: the choices of all tokens, in the order of experts.

It never leaves the device, so that nothing waits for a GPU to say how many rows an expert got.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """S = T * k rows, one for each of a token's k experts; those of an expert follow one another.

    Attributes:
        tokens: [S] int32: whose activations a row takes; None where row i takes row i.
        offsets: [E + 1] int32: the first row of each expert, and S.
        rows: [T, k]: where the rows of a token are, in the order in which it chose their experts.
    """

    tokens: Tensor | None
    offsets: Tensor
    rows: Tensor

    @classmethod
    def of(cls, choices: Tensor, num_experts: int) -> "Routing":
        """From the experts that each token chose, [T, k], all of them below `num_experts`."""
        num_tokens, top_k = choices.shape
        experts, order = choices.reshape(-1).sort(stable=True)
        rows = torch.empty_like(order)
        rows[order] = torch.arange(order.shape[0], device=order.device)
        bounds = torch.arange(num_experts + 1, device=experts.device, dtype=experts.dtype)
        offsets = torch.searchsorted(experts, bounds, out_int32=True)
        return cls((order // top_k).int(), offsets, rows.view(num_tokens, top_k))

    def within(self) -> "Routing":
        """For activations that are in the order of experts already."""
        return Routing(None, self.offsets, self.rows)

    def of_rows(self, per_token: Tensor) -> Tensor:
        """[T, ...] or, within, [S, ...] -> [S, ...]."""
        return per_token if self.tokens is None else per_token.index_select(0, self.tokens)

    def shares(self) -> Iterator[tuple[int, slice]]:
        """The experts that have rows, and which. Waits for the device."""
        offsets = self.offsets.tolist()
        for expert, (start, stop) in enumerate(pairwise(offsets)):
            if start < stop:
                yield expert, slice(start, stop)


def combine(rows: Tensor, routing: Routing, weights: Tensor) -> Tensor:
    """The experts' results [S, H], weighted by [T, k] and added up for each token in the order of its choices: [T, H].

    One rounding after the other in float32, in rows' dtype at the end; a token's sum has the same bits in any batch.
    """
    chosen = rows.index_select(0, routing.rows.reshape(-1)).view(*routing.rows.shape, rows.shape[1])
    weighted = chosen * weights.float()[..., None]  # [T, k, H]
    total = weighted[:, 0]
    for choice in range(1, weighted.shape[1]):  # (`sum` would choose an order by the shape)
        total = total + weighted[:, choice]
    return total.to(rows.dtype)
