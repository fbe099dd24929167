"""What a router is worth at every cost, beside sending questions to either tier at random. Knows no thresholds.

Costs are means per question: a predictive route pays one of the tiers; a cascade pays the small one always, and what an
escalated answer costs where the large one is asked. With the small tier's answer for a draft, always asking both may be
cheaper than the large tier alone; then that is what the random mix is with: else a judge would be praised for its drafts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bootstrap import Estimate, estimate, resampled_weights
from .rows import Outcomes

Floats = NDArray[np.float64]

# Costs between the small tier's, 0, and those of all answers of the large one's quality, 1, at which a router is compared.
PLACES = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, slots=True)
class Curve:
    """Shares of right answers that a router serves, at the costs of `PLACES`.

    Attributes:
        quality: of the router.
        gain: by how much it is better than the random mix of the same cost.
        mean_gain: the mean of `gain`; whether the router is worth anything is judged by this.
    """

    quality: list[Estimate]
    gain: list[Estimate]
    mean_gain: Estimate


def trace(scores: Floats, outcomes: Outcomes, *, cascade: bool) -> Curve:
    """Of a router that keeps the small tier's answers with the highest scores [N], as many as its cost allows."""
    order = np.argsort(-scores, kind="stable")
    weights = resampled_weights(outcomes.groups)[:, order]
    weights /= weights.sum(axis=1, keepdims=True)
    small_cost, large_cost = outcomes.small_cost[order], outcomes.large_cost[order]
    cheap = weights @ small_cost
    dear = np.minimum(weights @ large_cost, cheap + weights @ outcomes.escalated_cost[order])
    quality = _served(weights, outcomes.small_right[order], outcomes.large_right[order])
    if cascade:
        nothing = np.zeros_like(small_cost)
        cost = cheap[:, None] + _served(weights, nothing, outcomes.escalated_cost[order])
    else:
        cost = _served(weights, small_cost, large_cost)
    # Costs fall with what is kept, but where a small tier's answer is the dearer one.
    falling = np.minimum.accumulate(cost, axis=1)
    places = np.array(PLACES)
    found = np.array(
        [
            np.interp(low + places * (high - low), costs[::-1], right[::-1])
            for low, high, costs, right in zip(cheap, dear, falling, quality, strict=True)
        ]
    )
    small, large = quality[:, -1:], quality[:, :1]
    gain = found - (small + places * (large - small))
    return Curve(
        [estimate(column) for column in found.T],
        [estimate(column) for column in gain.T],
        estimate(gain.mean(axis=1)),
    )


def oracle_scores(outcomes: Outcomes) -> Floats:
    """Of who knows beforehand which tier is right: the large one is asked where it gains, the cheapest questions first."""
    gains = outcomes.large_right.astype(float) - outcomes.small_right
    return -gains / np.maximum(outcomes.large_cost, 1e-12)


def _served(weights: Floats, small: NDArray[np.generic], large: NDArray[np.generic]) -> Floats:
    """The means [R, 1 + N] with the first 0, 1, ..., N rows from the small tier."""
    change = np.cumsum(weights * (small.astype(float) - large.astype(float)), axis=1)
    return np.asarray((weights @ large.astype(float))[:, None] + np.pad(change, ((0, 0), (1, 0))))
