"""Shares of right answers, and how sure it is that two models differ in them. Knows nothing of how they were judged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .estimate import Estimate, Z, share


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one model beside another, on the same tasks.

    Attributes:
        share: of right answers.
        change: that share less the other model's.
        gained, lost: answers that only this model, and only the other, has right.
    """

    share: Estimate
    change: Estimate
    gained: int
    lost: int


def accuracy(right: Sequence[bool], reference: Sequence[bool]) -> Accuracy:
    """`right`, `reference`: whether each task was answered rightly by this model and by the one it is compared with."""
    gained = sum(mine and not theirs for mine, theirs in zip(right, reference, strict=True))
    lost = sum(theirs and not mine for mine, theirs in zip(right, reference, strict=True))
    return Accuracy(share(sum(right), len(right)), _difference(gained, lost, len(right)), gained, lost)


def _difference(gained: int, lost: int, count: int) -> Estimate:
    """Of two paired shares: Wald's interval with one more answer of each kind (Bonett and Price, 2012), which unlike the
    bootstrap has a width also where no answer changed."""
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return Estimate((gained - lost) / count, max(-1.0, up - down - half), min(1.0, up - down + half), count)
