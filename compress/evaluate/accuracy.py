"""Shares of right answers, and how sure it is that two models differ in them. Knows nothing of how they were judged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .estimate import Estimate, Z, by_topic, effective_count, share


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one model beside another, on the same tasks.

    Attributes:
        share: of right answers.
        change: that share less the other model's.
        gained, lost: answers that only this model, and only the other, has right.
        topics: that the tasks are about; None where each is asked in one wording only.
    """

    share: Estimate
    change: Estimate
    gained: int
    lost: int
    topics: int | None


def accuracy(
    right: Sequence[bool], reference: Sequence[bool], topics: Sequence[str | None] | None = None
) -> Accuracy:
    """Args:
    right, reference: whether each task was answered rightly by this model and by the one it is compared with.
    topics: of each task, what is the same where the same is asked in other words; None: each is alone.
    """
    mine, theirs = (torch.tensor(answers, dtype=torch.double) for answers in (right, reference))
    apart = mine - theirs
    gained, lost = int((apart > 0).sum()), int((apart < 0).sum())
    groups = by_topic([None] * len(right) if topics is None else topics)
    different = int(groups.max()) + 1
    return Accuracy(
        share(sum(right), len(right), effective_count(mine, groups)),
        _difference(gained, lost, len(right), effective_count(apart, groups)),
        gained,
        lost,
        topics=different if different < len(right) else None,
    )


def _difference(gained: int, lost: int, count: int, effective: float) -> Estimate:
    """Of two paired shares: Wald's interval with one more answer of each kind (Bonett and Price, 2012), which unlike the
    bootstrap has a width also where no answer changed. Of answers that tell as much as `effective` independent ones."""
    scale = effective / count
    up, down = (gained * scale + 1) / (effective + 2), (lost * scale + 1) / (effective + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (effective + 2))
    return Estimate((gained - lost) / count, max(-1.0, up - down - half), min(1.0, up - down + half), count)
