"""A measured number with its 95 % interval. Knows sums and samples, nothing of models."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 1000
SEED = 7
LOW, HIGH = 0.025, 0.975
# Two-sided 95 % of a normal distribution.
Z = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval that holds the true one in 95 of 100 such measurements.

    Attributes:
        count: how many single observations (tokens, answers, rounds) it was taken over.
    """

    value: float
    low: float
    high: float
    count: int


def resampled_totals(sums: Tensor) -> Tensor:
    """Totals [RESAMPLES, K] of the rows of `sums` [N, K], drawn N at a time with replacement, the same draws every time.

    A statistic computed on each row of them is spread as it would be over other texts of the same kind: the bootstrap
    (Efron 1979) over whole texts, whose tokens are not independent of each other.
    """
    generator = torch.Generator().manual_seed(SEED)
    count = sums.shape[0]
    draws = (torch.randint(count, (count,), generator=generator) for _ in range(RESAMPLES))
    return torch.stack([sums[draw].sum(0) for draw in draws])


def interval(value: float, resampled: Tensor, count: int) -> Estimate:
    """`resampled`: the statistic of each row of `resampled_totals`."""
    low, high = torch.quantile(resampled.double(), torch.tensor([LOW, HIGH], dtype=torch.double)).tolist()
    return Estimate(value, low, high, count)


def share(successes: int, count: int) -> Estimate:
    """A share of independent trials, with Wilson's score interval, which is sound near 0 and 1 and for few trials."""
    if not count:
        raise ValueError("a share of no trials")
    observed, squared = successes / count, Z * Z
    middle = (observed + squared / (2 * count)) / (1 + squared / count)
    half = Z * math.sqrt(observed * (1 - observed) / count + squared / (4 * count**2)) / (1 + squared / count)
    return Estimate(observed, max(0.0, middle - half), min(1.0, middle + half), count)
