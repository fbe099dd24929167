"""What was measured of each question, as rows and as arrays, and which rows are for what.

Rows are for fitting, for setting thresholds, or for the report, by the hash of their group: questions that are nearly the
same are on one side, so that nothing is held back that the fit has seen in other words.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from ...compress.distill.dataset import gist
from ...proxy.routing.learned import Evidence, Question

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Shares of the groups. A promise of 0.99 needs 299 of those in the middle, the fit is content with less.
FIT, CALIBRATE = 0.35, 0.4
# Where all questions come down to so few groups for their number, they differ in what groups leave out: numbers, for one.
_ROWS_PER_GROUP = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One question that both tiers answered.

    Attributes:
        group: the same for questions that are nearly the same.
        evidence: of the small tier's answer.
        small_right, large_right: how they did.
        small_cost, large_cost: of their answers, in one unit.
        escalated_cost: of the large tier's answer when it is given the small one's as a draft.
    """

    group: str
    question: Question
    evidence: Evidence
    small_right: bool
    large_right: bool
    small_cost: float
    large_cost: float
    escalated_cost: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How both tiers did, of N questions, as arrays [N].

    Attributes:
        loses: the large tier is right where the small one is not.
        groups: a number for each group.
    """

    small_right: Bools
    large_right: Bools
    small_cost: Floats
    large_cost: Floats
    escalated_cost: Floats
    groups: NDArray[np.int64]

    @property
    def loses(self) -> Bools:
        return self.large_right & ~self.small_right

    @property
    def dear_cost(self) -> float:
        """The least that the large tier's quality costs without a judge: it alone, or with the small one's drafts."""
        return float(min(self.large_cost.mean(), self.small_cost.mean() + self.escalated_cost.mean()))

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, slots=True)
class Split:
    """Attributes:
    fit: for the judge.
    calibrate: for the thresholds, one row of each group: the bound is for rows that know nothing of each other.
    test: for the report.
    """

    fit: list[Row]
    calibrate: list[Row]
    test: list[Row]

    @property
    def held_back(self) -> list[Row]:
        """What the fit has not seen."""
        return [*self.calibrate, *self.test]


def outcomes_of(rows: Sequence[Row]) -> Outcomes:
    number = {group: place for place, group in enumerate(dict.fromkeys(row.group for row in rows))}
    return Outcomes(
        np.array([row.small_right for row in rows], dtype=bool),
        np.array([row.large_right for row in rows], dtype=bool),
        np.array([row.small_cost for row in rows]),
        np.array([row.large_cost for row in rows]),
        np.array([row.escalated_cost for row in rows]),
        np.array([number[row.group] for row in rows], dtype=np.int64),
    )


def groups_of(asked: Sequence[str], topics: Sequence[str | None] | None = None) -> list[str]:
    """Of each question: its topic, where it has one; else its gist, and of questions that say all the same in other numbers:
    themselves."""
    if topics is not None:
        others = iter(groups_of([text for text, topic in zip(asked, topics, strict=True) if topic is None]))
        return [next(others) if topic is None else f"topic: {topic}" for topic in topics]
    gists = [gist(text) for text in asked]
    if len(set(gists)) * _ROWS_PER_GROUP < len(set(asked)):
        return list(asked)
    return gists


# So that what `penstock distill` held out of the same questions is not all in one part.
_SALT = 0xA7 << 32


def split(rows: Iterable[Row], seed: int) -> Split:
    """Another `seed` splits otherwise; the same splits the same rows alike, whatever their order."""
    fit, calibrate, test = list[Row](), list[Row](), list[Row]()
    for row in rows:
        place = _place(row.group, seed)
        part = fit if place < FIT else calibrate if place < FIT + CALIBRATE else test
        part.append(row)
    # Which of a group is chosen has nothing to do with how it was answered.
    calibrate.sort(key=lambda row: _place(row.question.text, seed))
    chosen = {row.group: row for row in calibrate}
    return Split(fit, list(chosen.values()), test)


def _place(text: str, seed: int) -> float:
    """In [0, 1)."""
    return xxhash.xxh3_64_intdigest(text.encode(), seed=_SALT + seed) / 2**64
