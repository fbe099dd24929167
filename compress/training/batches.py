"""Texts as batches: of like length together, padded on the right, a pure function of (seed, step).

With causal attention nothing ever looks at padding on the right, so there is no mask. Knows no model.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..texts import Tokens

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Attributes:
    ids: [B, L] int64.
    labels: [B, L] int64; `labels[:, t]` is the token after `ids[:, t]`, or IGNORE where nothing is learnt.
    written_by_student: its answers are the student's own, so that they are no truth to learn by heart.
    """

    ids: Tensor
    labels: Tensor
    written_by_student: bool = False

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.labels.to(device), self.written_by_student)


@dataclass(frozen=True, slots=True)
class Place:
    """Which of `size` processes that train together this is, from 0."""

    rank: int = 0
    size: int = 1

    def index(self, step: int) -> int:
        """Of what this process takes at `step`, in the one order in which all take turns."""
        return step * self.size + self.rank


ONLY = Place()


class Batches:
    """Endless: every text once an epoch, in another order and with other texts each time.

    Args:
        texts: at least one, each with something to learn after its first token.
        batch_tokens: most padded tokens of a batch; a text longer than that is a batch by itself.
        place: whose batches; those of a step are neighbours in the order of the epoch.
    """

    def __init__(
        self,
        texts: Sequence[Tokens],
        batch_tokens: int,
        seed: int,
        place: Place = ONLY,
    ) -> None:
        assert texts, "whoever reads texts refuses none"
        self._texts = texts
        self._batch_tokens = batch_tokens
        self._seed, self._place = seed, place
        self._epoch, self._plan = -1, self._planned(0)
        # Grouping goes by the sorted lengths alone: as many batches in every epoch.
        self._per_epoch = len(self._plan)

    def at(self, step: int) -> Batch:
        epoch, index = divmod(self._place.index(step), self._per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._planned(epoch)
        return to_batch([self._texts[i] for i in self._plan[index]])

    def state(self) -> dict[str, Any]:
        """What `at` depends on beside the step: nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _planned(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self._seed} {epoch}")
        order = list(range(len(self._texts)))
        rng.shuffle(order)  # sorting is stable: which of equal length meet is drawn anew
        order.sort(key=lambda i: len(self._texts[i].ids))
        plan = list(grouped(order, [len(text.ids) for text in self._texts], self._batch_tokens))
        rng.shuffle(plan)
        return plan


def in_order(texts: Sequence[Tokens], batch_tokens: int) -> Iterator[Batch]:
    """Every text once, shortest first: what a held-out loss is taken on."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    for group in grouped(order, [len(text.ids) for text in texts], batch_tokens):
        yield to_batch([texts[i] for i in group])


def grouped(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """`order`, by ascending length, cut into groups of at most `batch_tokens` padded tokens."""
    group: list[int] = []
    for i in order:
        if group and (len(group) + 1) * lengths[i] > batch_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def to_batch(texts: Sequence[Tokens], *, written_by_student: bool = False) -> Batch:
    length = max(len(text.ids) for text in texts) - 1
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    labels = torch.full((len(texts), length), IGNORE, dtype=torch.int64)
    for row, text in enumerate(texts):
        whole = torch.tensor(text.ids)
        ids[row, : len(whole) - 1] = whole[:-1]
        labels[row, : len(whole) - 1] = torch.where(torch.tensor(text.learn[1:]), whole[1:], IGNORE)
    return Batch(ids, labels, written_by_student)
