"""The loss of a student that has a teacher: how far its distributions are, with cross-entropy and hidden states mixed in."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..training.batches import Batch
from ..training.chunked import rows_per_chunk, summed
from ..training.halves import Halves, Head, split
from ..training.objective import Loss, Objective, cross_entropy, hidden_states, learnt_positions
from .losses import divergence


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """Attributes:
    kind: of DIVERGENCES; temperature and beta: see `divergence`.
    cross_entropy: the share of the loss that is cross-entropy with the text; none of what the student wrote itself.
    hidden: the weight of how far the last hidden states are from the teacher's; 0 leaves that out.
    """

    kind: str = "forward-kl"
    temperature: float = 1.0
    beta: float = 0.5
    cross_entropy: float = 0.0
    hidden: float = 0.0


class Distillation(Objective):
    """Args:
    teacher: a transformers causal language model on the student's device; it does not learn.
    student_width: of the student's hidden states.
    """

    def __init__(self, teacher: Any, student_width: int, settings: DistillSettings) -> None:
        super().__init__()
        self.settings = settings
        self._teacher = split(teacher.eval().requires_grad_(False))
        width = self._teacher.head.weight.shape[1]
        self.projection = nn.Linear(student_width, width, bias=False) if settings.hidden else None
        if self.projection is not None:
            nn.init.eye_(self.projection.weight)
            self.projection.to(teacher.device)

    def forward(self, student: Halves, batch: Batch) -> Loss:
        wanted, labels = learnt_positions(batch)
        hidden = hidden_states(student, batch, wanted)
        with torch.no_grad():
            teacher_hidden = hidden_states(self._teacher, batch, wanted)
        head, teacher_head = student.head, self._teacher.head
        # Rows behind the shorter vocabulary stand for no token: padding of a matrix.
        vocab = min(len(head.weight), len(teacher_head.weight))
        teacher_head = _narrowed(teacher_head, vocab)
        settings = self.settings
        share = 0.0 if batch.written_by_student else settings.cross_entropy

        def loss(
            chunk: Tensor, weight: Tensor, bias: Tensor | None, rows: slice
        ) -> tuple[Tensor, dict[str, Tensor]]:
            logits = _narrowed(replace(head, weight=weight, bias=bias), vocab)(chunk)
            with torch.no_grad():
                target = teacher_head(teacher_hidden[rows])
            away = divergence(
                settings.kind, logits, target, temperature=settings.temperature, beta=settings.beta
            ).sum()
            plain = cross_entropy(logits, labels[rows]).sum()
            return (1 - share) * away + share * plain, {settings.kind: away, "cross_entropy": plain}

        total, told = summed(loss, hidden, head.weight, head.bias, rows_per_chunk(vocab))
        count = max(1, len(labels))
        value, parts = total / count, {name: part / count for name, part in told.items()}
        if self.projection is not None:
            parts["hidden"] = _apart(self.projection(hidden), teacher_hidden)
            value = value + settings.hidden * parts["hidden"]
        return Loss(value, len(labels), parts)


def _narrowed(head: Head, vocab: int) -> Head:
    bias = None if head.bias is None else head.bias[:vocab]
    return replace(head, weight=head.weight[:vocab], bias=bias)


def _apart(found: Tensor, target: Tensor) -> Tensor:
    """The squared distance over the target's squared length, a mean over the positions: 1 for a student that gives zeros."""
    target = target.float()
    return ((found.float() - target).square().sum(-1) / target.square().sum(-1)).mean()
