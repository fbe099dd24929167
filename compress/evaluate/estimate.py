"""A measured number with its 95 % interval. Knows sums and samples, nothing of models."""

import math
from collections.abc import Sequence
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


def by_topic(topics: Sequence[str | None]) -> Tensor:
    """Numbers from 0 on [N], the same for the same topic; what has none is alone. Of a single topic all are alone, too.

    What asks or says the same in other words is right or wrong together: a topic is one observation (Miller 2024, "Adding
    Error Bars to Evals"), and one observation has no spread: of a single topic, its wordings are what may be others.
    """
    numbers: dict[object, int] = {}
    keys = (place if topic is None else topic for place, topic in enumerate(topics))
    found = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    return found if len(numbers) > 1 else torch.arange(len(found))


def effective_count(values: Tensor, topics: Tensor) -> float:
    """How many independent values would tell as much of the mean as these [N], whose `topics` [N] are as of `by_topic`.

    N over the design effect (Kish 1965), which is at least 1. Where all values are equal, nothing shows how far those of a
    topic go together, and they are taken to do so wholly.
    """
    count, apart = len(values), values.double() - values.double().mean()
    if not bool(apart.any()):
        return count * count / float(topics.bincount().double().square().sum())
    together = apart.new_zeros(int(topics.max()) + 1).index_add(0, topics, apart)
    return count / max(1.0, float(together.square().sum() / apart.square().sum()))


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


def share(successes: int, count: int, effective: float | None = None) -> Estimate:
    """A share of trials, with Wilson's score interval, which is sound near 0 and 1 and for few trials.

    Args:
        effective: as how many independent ones they tell; None: all are independent.
    """
    if not count:
        raise ValueError("a share of no trials")
    number = count if effective is None else effective
    observed, squared = successes / count, Z * Z
    middle = (observed + squared / (2 * number)) / (1 + squared / number)
    half = (
        Z * math.sqrt(observed * (1 - observed) / number + squared / (4 * number**2)) / (1 + squared / number)
    )
    return Estimate(observed, max(0.0, middle - half), min(1.0, middle + half), count)
