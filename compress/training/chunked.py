"""A loss over many positions, some at a time, so that logits of all of them never exist.

The gradients are taken chunk by chunk on the way forward, and only scaled on the way back. Against recomputing each
chunk on the way back (checkpointing) that saves one product with every head involved.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Numbers in the logits of one chunk: 64 MB in float32, of which a divergence needs about six at a time.
CHUNK_ELEMENTS = 2**24

# (hidden [C, D], weight [V, D], bias [V] or None, rows) to sums over the C positions: what is learnt from, then
# whatever else is told, which gets no gradient.
ChunkLoss = Callable[[Tensor, Tensor, Tensor | None, slice], tuple[Tensor, dict[str, Tensor]]]


def rows_per_chunk(vocab_size: int) -> int:
    return max(16, CHUNK_ELEMENTS // vocab_size)


def summed(
    loss: ChunkLoss, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of `loss` over all chunks of `rows` of hidden [N, D], and the sums of what it tells.

    Gradients reach hidden, weight and bias.
    """
    told: dict[str, Tensor] = {}
    total: Tensor = _Summed.apply(loss, told, rows, hidden, weight, bias)  # type: ignore[no-untyped-call]
    return total, told


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: ChunkLoss,
        told: dict[str, Tensor],
        rows: int,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        given: list[Any] = [hidden, weight, bias]
        grads = {i: torch.zeros_like(given[i]) for i in range(3) if ctx.needs_input_grad[3 + i]}
        head: list[Any] = [
            t if t is None else t.detach().requires_grad_(i in grads) for i, t in ((1, weight), (2, bias))
        ]
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            chunk = hidden[part].detach().requires_grad_(0 in grads)
            with torch.set_grad_enabled(bool(grads)):
                value, others = loss(chunk, head[0], head[1], part)
            found = torch.autograd.grad(value, [(chunk, *head)[i] for i in grads]) if grads else ()
            for i, grad in zip(grads, found, strict=True):
                if i == 0:
                    grads[i][part] = grad
                else:
                    grads[i] += grad
            total += value.detach()
            for name, other in others.items():
                told[name] = told.get(name, 0) + other.detach()
        ctx.grads = grads
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        grads = [ctx.grads[i].mul_(outer[0]) if i in ctx.grads else None for i in range(3)]
        del ctx.grads
        return (None, None, None, *grads)
