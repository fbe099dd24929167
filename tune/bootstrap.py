"""Intervals of what was measured: the bootstrap (Efron 1979) over groups of questions, which know nothing of each other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
LOW, HIGH = 0.025, 0.975


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, and the interval that holds the true one in 95 of 100 such measurements."""

    value: float
    low: float
    high: float


def resampled_weights(groups: NDArray[np.int64]) -> Floats:
    """How often each row counts [1 + RESAMPLES, N]: once, and then as whole groups are drawn with replacement.

    The same draws every time. `groups`: numbers from 0 on [N].
    """
    rng = np.random.default_rng(7)
    count = int(groups.max()) + 1
    weights = np.ones((1 + RESAMPLES, len(groups)))
    for row in weights[1:]:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)[groups]
    return weights


def estimate(values: Floats) -> Estimate:
    """`values` [1 + RESAMPLES]: the first is of the rows as they are; what is no number is left out."""
    low, high = np.nanquantile(values[1:], (LOW, HIGH))
    return Estimate(float(values[0]), float(low), float(high))
