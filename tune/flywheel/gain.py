"""What could be switched on, and what it should save by timings and a router's figures; measures nothing.

Seconds of both models are added up, which holds while one waits for the other, or the machine has no more to give. In
between they are in each other's way, or have smaller batches: hence the rehearsal.
"""

from collections.abc import Mapping, Sequence

import msgspec

from ..router.learn import Policy, Promise
from .timing import Run, seconds_of

# What saves less is not worth a model more, nor told from what machines do by themselves.
WORTH = 0.95
# Timed on the same questions: the model as it is served, with the student guessing for it if it may, the student, and the
# first two with its answers as drafts.
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
        guesses = seconds.get(GUESSED, float("inf")) < WORTH * seconds[LARGE]
        main, drafted = (GUESSED, GUESSED_DRAFTED) if guesses else (LARGE, LARGE_DRAFTED)
        return cls(seconds[LARGE], seconds[main], seconds[drafted], seconds[SMALL], guesses)


class Option(msgspec.Struct, frozen=True):
    """Attributes:
    policy: "cascade", "predictive", or "drafts", where the student only guesses.
    cost: of an answer, over what it costs now; low, high: what 95 of 100 such samples of questions would show, of timings
        that are what they are.
    kept: share of answers that the student gives.
    """

    policy: str
    cost: float
    low: float
    high: float
    kept: float = 0.0


def options(timings: Timings, policies: Sequence[Policy], quality: float) -> list[Option]:
    """What keeps the promise `quality` and should save something, the cheapest first."""
    main = timings.main / timings.large
    found = [Option("drafts", main, main, main)] if timings.guesses else []
    for policy in policies:
        promise = _kept_promise(policy, quality)
        if promise is not None:
            cost, name = promise.cost, "cascade" if policy.cascade else "predictive"
            found.append(Option(name, cost.value * main, cost.low * main, cost.high * main, promise.kept))
    return sorted((one for one in found if one.cost < WORTH), key=lambda one: one.cost)


def _kept_promise(policy: Policy, quality: float) -> Promise | None:
    if policy.objection is not None:
        return None
    return next((p for p in policy.promises if p.pays and p.threshold.quality == quality), None)
