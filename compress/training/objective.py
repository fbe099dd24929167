"""What training lowers: the seam to the losses, and the plain one, cross-entropy with the text."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from .batches import IGNORE, Batch
from .chunked import rows_per_chunk, summed
from .halves import Halves


@dataclass(frozen=True, slots=True)
class Loss:
    """Means over the positions learnt from.

    Attributes:
        value: what the gradients are taken of.
        positions: how many there were.
        parts: what it is made of, and what else is told of it, by name.
    """

    value: Tensor
    positions: int
    parts: dict[str, Tensor]


class Objective(nn.Module):
    """A module, so that what it learns beside the student (a projection) is trained, kept and restored with it."""

    def forward(self, student: Halves, batch: Batch) -> Loss:
        raise NotImplementedError


class CrossEntropy(Objective):
    """With the tokens of the text."""

    def forward(self, student: Halves, batch: Batch) -> Loss:
        wanted, labels = learnt_positions(batch)
        hidden = hidden_states(student, batch, wanted)
        head = student.head

        def loss(
            chunk: Tensor, weight: Tensor, bias: Tensor | None, rows: slice
        ) -> tuple[Tensor, dict[str, Tensor]]:
            value = cross_entropy(replace(head, weight=weight, bias=bias)(chunk), labels[rows]).sum()
            return value, {"cross_entropy": value}

        total, told = summed(loss, hidden, head.weight, head.bias, rows_per_chunk(len(head.weight)))
        count = max(1, len(labels))
        return Loss(total / count, len(labels), {name: value / count for name, value in told.items()})


def learnt_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which of the B * L positions something is learnt at, as a mask [B * L], and the tokens that follow those [N]."""
    labels = batch.labels.flatten()
    wanted = labels != IGNORE
    return wanted, labels[wanted]


def hidden_states(model: Halves, batch: Batch, wanted: Tensor) -> Tensor:
    """Those [N, D] of the `wanted` positions, as the head takes them."""
    states: Tensor = model.backbone(input_ids=batch.ids, use_cache=False).last_hidden_state
    return states.flatten(0, 1)[wanted]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[C], in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(wide), labels, reduction="none")
