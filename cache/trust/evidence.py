"""What verification has said about single entries and single words. Knows no score and no threshold.

Entries: as in vCache (Schroeder et al., arXiv 2502.03771), counts of right and wrong.
Words: whether answers stayed the same when this word differed. "please" and "how" soon turn out to be harmless, "from"
and "without" not, in any language and without a list.
"""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from .features import Features
from .labels import SAME, Rows


class Tally(msgspec.Struct):
    """Of one entry. `highest_different`: the highest cosine at which it was verified to be wrong, -1.0 for none."""

    same: int = 0
    different: int = 0
    highest_different: float = -1.0


class Evidence:
    def __init__(self) -> None:
        self._entries: dict[int, Tally] = {}
        self._same: dict[int, int] = {}
        self._different: dict[int, int] = {}

    def tally(self, entry: int) -> Tally:
        return self._entries.get(entry) or Tally()

    def numbers(self, entry: int, features: Features) -> tuple[float, float, float, float]:
        """The entry's counts, the most harmful of the differing words, and how many of them are hardly known; in logs."""
        tally = self.tally(entry)
        counts = [(self._same.get(word, 0), self._different.get(word, 0)) for word in features.differing]
        harm = [math.log((different + 0.5) / (same + 0.5)) for same, different in counts]
        unknown = sum(same + different < 3 for same, different in counts)
        return (
            math.log1p(tally.same),
            math.log1p(tally.different),
            max(harm, default=-4.0),
            math.log1p(unknown),
        )

    def count(self, entry: int, features: Features, same: bool) -> None:
        self._count_entry(entry, features.numbers[0], same)
        counts = self._same if same else self._different
        for word in features.differing:
            counts[word] = counts.get(word, 0) + 1

    def recount(self, rows: Rows) -> None:
        """Forget all, and count these rows."""
        self._entries.clear()
        same = rows["flags"] & SAME != 0
        for entry, cosine, right in zip(
            rows["entry"].tolist(), rows["values"][:, 0].tolist(), same.tolist(), strict=True
        ):
            self._count_entry(entry, cosine, right)
        words = rows["differing"]
        self._same, self._different = _counts(words[same]), _counts(words[~same])

    def _count_entry(self, entry: int, cosine: float, same: bool) -> None:
        tally = self._entries.setdefault(entry, Tally())
        if same:
            tally.same += 1
        else:
            tally.different += 1
            tally.highest_different = max(tally.highest_different, cosine)


def _counts(words: NDArray[np.uint16]) -> dict[int, int]:
    found, counts = np.unique(words, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
