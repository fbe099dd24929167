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
        wanted = [argument for argument in ctx.needs_input_grad[3:] if argument]
        leaves = [None if t is None else t.detach() for t in (weight, bias)]
        for leaf, wants in zip(leaves, ctx.needs_input_grad[4:], strict=True):
            if leaf is not None:
                leaf.requires_grad_(wants)
        grads: list[Tensor | None] = [
            torch.zeros_like(t) if t is not None and wants else None
            for t, wants in zip((hidden, weight, bias), ctx.needs_input_grad[3:], strict=True)
        ]
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            chunk = hidden[part].detach().requires_grad_(ctx.needs_input_grad[3])
            with torch.set_grad_enabled(bool(wanted)):
                value, others = loss(chunk, leaves[0], leaves[1], part)  # type: ignore[arg-type]
            _accumulate(value, (chunk, *leaves), grads, part)
            total += value.detach()
            for name, other in others.items():
                told[name] = told.get(name, 0) + other.detach()
        ctx.grads = grads
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        grads = [None if grad is None else grad.mul_(outer[0]) for grad in ctx.grads]
        del ctx.grads
        return (None, None, None, *grads)


def _accumulate(
    value: Tensor, leaves: tuple[Tensor | None, ...], grads: list[Tensor | None], part: slice
) -> None:
    wanted = [i for i, grad in enumerate(grads) if grad is not None]
    if not wanted:
        return
    found = torch.autograd.grad(
        value,
        [leaf for leaf, grad in zip(leaves, grads, strict=True) if leaf is not None and grad is not None],
    )
    for i, grad in zip(wanted, found, strict=True):
        held = grads[i]
        assert held is not None
        if i == 0:
            held[part] = grad
        else:
            held += grad
