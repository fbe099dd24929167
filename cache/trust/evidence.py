"""What verification has said about single entries and single words. Knows no score and no threshold.

Entries: as in vCache (Schroeder et al., arXiv 2502.03771), counts of right and wrong.
Words: whether answers stayed the same when this word differed. "please" and "how" soon turn out to be harmless, "from"
and "without" not, in any language and without a list.
"""

import math

import msgspec
import numpy as np

from .features import Features
from .labels import SAME, Rows

_WORDS = 1 << 16


class Record(msgspec.Struct):
    """Of one entry. `highest_different`: the highest cosine at which it was verified to be wrong, -1.0 for none."""

    same: int = 0
    different: int = 0
    highest_different: float = -1.0


class Evidence:
    def __init__(self) -> None:
        self._entries: dict[int, Record] = {}
        self._same = [0] * _WORDS
        self._different = [0] * _WORDS

    def record(self, entry: int) -> Record:
        return self._entries.get(entry) or Record()

    def numbers(self, entry: int, features: Features) -> tuple[float, float, float, float]:
        """The entry's counts, the most harmful of the differing words, and how many of them are hardly known; in logs."""
        record = self.record(entry)
        harm = [
            math.log((self._different[word] + 0.5) / (self._same[word] + 0.5)) for word in features.differing
        ]
        unknown = sum(self._same[word] + self._different[word] < 3 for word in features.differing)
        return (
            math.log1p(record.same),
            math.log1p(record.different),
            max(harm, default=-4.0),
            math.log1p(unknown),
        )

    def count(self, entry: int, features: Features, same: bool) -> None:
        self._count_entry(entry, features.numbers[0], same)
        counts = self._same if same else self._different
        for word in features.differing:
            counts[word] += 1

    def recount(self, rows: Rows) -> None:
        """Forget all, and count these rows."""
        self._entries.clear()
        same = rows["flags"] & SAME != 0
        for entry, cosine, right in zip(
            rows["entry"].tolist(), rows["values"][:, 0].tolist(), same.tolist(), strict=True
        ):
            self._count_entry(entry, cosine, right)
        words = rows["differing"]
        self._same, self._different = (
            np.bincount(words[kind].ravel(), minlength=_WORDS).tolist() for kind in (same, ~same)
        )

    def _count_entry(self, entry: int, cosine: float, same: bool) -> None:
        record = self._entries.setdefault(entry, Record())
        if same:
            record.same += 1
        else:
            record.different += 1
            record.highest_different = max(record.highest_different, cosine)
