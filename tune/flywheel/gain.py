"""What is switched on, and what it is expected to save, from timings and a router's figures; measures nothing.

An expectation is made before the check: for questions that neither timings nor router have seen.
"""

from collections.abc import Mapping, Sequence

import msgspec

from ..router.learn import Policy, Promise
from .timing import Run, seconds_of

# What saves less is not worth a model more, nor told from what machines do by themselves.
WORTH = 0.95
# Timed on the same questions: the model as it is served, with the student guessing for it, the student, and the first two
# with its answers as drafts.
LARGE, GUESSED, SMALL, LARGE_DRAFTED, GUESSED_DRAFTED = (
    "large",
    "guessed",
    "small",
    "large-drafted",
    "guessed-drafted",
)


class Timings(msgspec.Struct, frozen=True):
    """Seconds of the machine for the timed questions.

    Attributes:
        large: of the model as it is served; main: as it would be from now on, `guesses` if the student guesses for it.
        escalated: the same with the student's answers as drafts.
        small: of the student.
    """

    large: float
    main: float
    escalated: float
    small: float
    guesses: bool

    @classmethod
    def of(cls, runs: Mapping[str, Sequence[Run]]) -> "Timings":
        seconds = {name: seconds_of(found) for name, found in runs.items()}
        guesses = seconds[GUESSED] < WORTH * seconds[LARGE]
        main, drafted = (GUESSED, GUESSED_DRAFTED) if guesses else (LARGE, LARGE_DRAFTED)
        return cls(seconds[LARGE], seconds[main], seconds[drafted], seconds[SMALL], guesses)


class Expected(msgspec.Struct, frozen=True):
    """Attributes:
    policy: "cascade", "predictive", "drafts", the student only guesses, or "nothing".
    cost: of an answer, over what it costs now; low, high: what 95 of 100 such samples of questions would show, of timings
        that are what they are.
    kept: share of answers that the student gives.
    """

    policy: str
    cost: float = 1.0
    low: float = 1.0
    high: float = 1.0
    kept: float = 0.0

    @property
    def cheaper(self) -> float:
        return 1 / self.cost


def expected(timings: Timings, policies: Sequence[Policy], quality: float) -> Expected:
    """The cheapest of what keeps the promise `quality`."""
    main = timings.main / timings.large
    best = Expected("drafts", main, main, main) if timings.guesses else Expected("nothing")
    for policy in policies:
        promise = _kept_promise(policy, quality)
        if promise is not None and promise.cost.value * main < WORTH * best.cost:
            cost = promise.cost
            name = "cascade" if policy.cascade else "predictive"
            best = Expected(name, cost.value * main, cost.low * main, cost.high * main, promise.kept)
    return best


def _kept_promise(policy: Policy, quality: float) -> Promise | None:
    if policy.objection is not None:
        return None
    return next((p for p in policy.promises if p.pays and p.threshold.quality == quality), None)
