"""A ruling's score of one answer or question. Knows no thresholds."""

import math

import numpy as np
from numpy.typing import NDArray

from .features import Inputs
from .router_file import Ruling
from .values import Evidence, Question

Floats = NDArray[np.float64]


# Standard deviations. What hardly varied among the questions of the fit would otherwise outweigh all else in the first
# question that is worded otherwise.
_FAR = 4.0


def standardized(values: Floats, means: Floats, scales: Floats) -> Floats:
    """In standard deviations from the mean [..., F], as judges are fitted to them; far ones count as `_FAR`."""
    return np.clip((values - means) / scales, -_FAR, _FAR)


class Scorer:
    """Log-odds that the small tier's answer loses nothing, and what they are the sum of."""

    def __init__(self, ruling: Ruling) -> None:
        self.inputs: Inputs = ruling.inputs
        self._means, self._scales = np.array(ruling.means), np.array(ruling.scales)
        self._weights, self._offset = np.array(ruling.weights), ruling.offset
        self._scores, self._probabilities = ruling.scores, ruling.probabilities

    def parts(self, question: Question, evidence: Evidence | None) -> Floats:
        """What each input adds [width]; none may be missing."""
        return self._weights * standardized(self.inputs.values(question, evidence), self._means, self._scales)

    def total(self, parts: Floats) -> float:
        return float(parts.sum() + self._offset)

    def score(self, question: Question, evidence: Evidence | None) -> float:
        """Minus infinity where an input is missing: such an answer is never accepted."""
        if self.inputs.missing(question, evidence):
            return -math.inf
        return self.total(self.parts(question, evidence))

    def probability(self, score: float) -> float:
        return float(np.interp(score, self._scores, self._probabilities))
