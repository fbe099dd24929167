"""Thresholds that keep a promise, set on questions that the judge was not fitted to.

What is promised: **of the questions that the large tier answers right, the route answers at least the share `quality`
right**, with confidence 1 - delta over the draw of the questions that the threshold is set on, for further questions of the
same kind.

The route is wrong on such a question only where it keeps a wrong answer of the small tier. So with N questions that the
large tier answered right, of which k would be lost at a threshold, k is binomial, and the exact bound of Clopper and
Pearson (Biometrika 26, 1934) says whether a rate of 1 - quality is excluded. No price is paid for trying all thresholds: a
lower one loses no fewer, so the lowest is taken whose bound, and with it that of all above it, holds (Bates et al.,
Distribution-free risk-controlling prediction sets, J. ACM 68, 2021, theorem 1; it is the fixed sequence, from the strictest
down, of Angelopoulos et al., Learn then test, 2021).

Hence also the quality among *all* answers served is at least `quality` times the large tier's: it is at least the share of
questions that were right and stayed so. Where the small tier is right and the large one wrong, the route is better than
promised; nothing is counted on that.

Each promise holds by itself; that the strictest and the mildest hold both is less certain than either. The questions must
know nothing of each other and be drawn as those to come: a change of traffic is what shadow comparisons are for.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...cache.trust.bound import tail
from ...proxy.routing.learned.router_file import Threshold

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def set_thresholds(
    scores: Floats, loses: Bools, large_right: Bools, qualities: Sequence[float], delta: float
) -> tuple[Threshold, ...]:
    """For each promise the lowest score that may be kept; None where there are too few questions for any.

    Args:
        scores: of the small tier's answers [N]; minus infinity where they are never kept.
        loses: the large tier is right where the small one is not [N].
        large_right: [N].
    """
    return tuple(_threshold(scores, loses, int(large_right.sum()), quality, delta) for quality in qualities)


def most_losses(questions: int, quality: float, delta: float) -> int:
    """How many of so many may be lost for the promise to hold; -1: not even none."""
    allowed = -1
    while allowed + 1 <= questions and tail(allowed + 1, questions, 1 - quality) <= delta:
        allowed += 1
    return allowed


def _threshold(scores: Floats, loses: Bools, questions: int, quality: float, delta: float) -> Threshold:
    allowed = most_losses(questions, quality, delta)
    lost = np.sort(scores[loses])[::-1]
    border = lost[allowed] if 0 <= allowed < len(lost) else -np.inf
    able = scores[scores > border]
    if allowed < 0 or not len(able):
        return Threshold(quality, None, 0.0, 0, questions)
    # Not lower than any that was seen, although the bound would hold there, too.
    lowest = float(able.min())
    kept = scores >= lowest
    return Threshold(quality, lowest, float(kept.mean()), int((kept & loses).sum()), questions)
