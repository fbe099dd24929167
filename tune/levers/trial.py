"""One point measured: what an answer costs there, how long it takes, and how many are right that would be without."""

from collections.abc import Sequence
from statistics import median

import msgspec
import numpy as np

from ..bootstrap import estimate, resampled_weights
from .replay import Replay
from .space import Point
from .workload import Request

PERCENTILE = 95


class Trial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Attributes:
    requests: how many it answered.
    cost: seconds of the machine per answer, as many at once as were asked for.
    right: of each answer whether it is.
    first_token, last_token: PERCENTILE of the seconds from a request to these of its answer.
    outcomes, models: how many answers by what the cache did, and by who answered.
    failure: why the server could not be measured; the rest is then empty.
    """

    point: Point
    requests: int
    cost: float = float("inf")
    right: tuple[bool, ...] = ()
    first_token: float = float("inf")
    last_token: float = float("inf")
    median_first_token: float = float("inf")
    outcomes: dict[str, int] = {}
    models: dict[str, int] = {}
    failure: str = ""

    @property
    def accuracy(self) -> float:
        return sum(self.right) / max(1, len(self.right))


class Loss(msgspec.Struct, frozen=True):
    """Share of the answers that are right at the baseline and wrong here, less those the other way round; with what 95 of
    100 workloads of such questions would show."""

    value: float
    low: float
    high: float


def trial_of(point: Point, requests: Sequence[Request], seen: Replay) -> Trial:
    return Trial(
        point=point,
        requests=len(requests),
        cost=seen.seconds / len(requests),
        right=tuple(
            request.matcher.accepts(text) for request, text in zip(requests, seen.texts, strict=True)
        ),
        first_token=float(np.percentile(seen.first_token, PERCENTILE)),
        last_token=float(np.percentile(seen.last_token, PERCENTILE)),
        median_first_token=median(seen.first_token),
        outcomes=_counted(seen.outcomes),
        models=_counted(seen.models),
    )


def loss_of(requests: Sequence[Request], right: Sequence[bool], at_baseline: Sequence[bool]) -> Loss:
    """A topic asked twice tells nothing new, so the interval is over different ones.

    Where no answer differs, it is what that excludes: the rule of three (Hanley & Lippman-Hand, JAMA 1983), for as many
    topics as would tell as much if they were asked equally often (Kish 1965).
    """
    groups: dict[str, int] = {}
    numbers = np.array([groups.setdefault(request.topic, len(groups)) for request in requests])
    lost = np.array(at_baseline, dtype=float) - np.array(right, dtype=float)
    if not lost.any():
        often = np.bincount(numbers)
        most = min(1.0, 3 * float((often**2).sum()) / len(requests) ** 2)
        return Loss(0.0, -most, most)
    weights = resampled_weights(numbers)
    spread = estimate(weights @ lost / weights.sum(axis=1))
    return Loss(spread.value, spread.low, spread.high)


def _counted(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
