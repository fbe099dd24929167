"""What `penstock tune levers` found, as a table in Markdown and as JSON; and which point it chooses. Measures nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .search import Limits
from .space import Space
from .trial import PERCENTILE, Loss, Trial

SHOWN = 24
# Repeats that lie further apart say more of the machine than of the settings.
NOISY = 0.2


@dataclass(frozen=True, slots=True)
class Found:
    """One point on the whole workload.

    Attributes:
        trials: of the same point, repeated.
        cost: seconds of the machine per answer, the median; noise: how far repeats lie apart, as a share of it.
        cheaper: than the baseline, so many times.
        broken: the limit it does not keep; empty where it keeps all.
        changed: levers that are not as in the baseline.
    """

    name: str
    choices: Mapping[str, str]
    trials: Sequence[Trial]
    loss: Loss
    cost: float
    noise: float
    cheaper: float
    broken: str
    changed: int

    @classmethod
    def of(
        cls, space: Space, trials: Sequence[Trial], loss: Loss, baseline: Sequence[Trial], limits: Limits
    ) -> "Found":
        first = trials[0]
        cost = median(trial.cost for trial in trials)
        return cls(
            name=space.named(first.point),
            choices=space.described(first.point),
            trials=trials,
            loss=loss,
            cost=cost,
            noise=_spread([trial.cost for trial in trials]),
            cheaper=median(trial.cost for trial in baseline) / cost,
            broken=limits.broken(first, loss),
            changed=sum(map(bool, first.point)),
        )

    @property
    def trial(self) -> Trial:
        return self.trials[0]


@dataclass(frozen=True, slots=True)
class Report:
    """Attributes:
    rungs: requests of each round.
    tried: points measured in earlier rounds only; found: on all requests.
    noise: the largest of those measured more than once.
    hour_price: of the machine; 0: unknown.
    """

    workload: str
    requests: int
    questions: int
    concurrency: int
    rungs: Sequence[int]
    limits: Limits
    baseline: Found
    found: Sequence[Found]
    tried: int
    hour_price: float
    machine: str

    @property
    def noise(self) -> float:
        return max(found.noise for found in (self.baseline, *self.found))

    @property
    def chosen(self) -> Found | None:
        """The cheapest within the limits; of those that noise does not tell apart, the one with the fewest levers moved.

        None where it is no cheaper than the baseline beyond noise.
        """
        allowed = [found for found in self.found if not found.broken]
        if not allowed:
            return None
        least = min(found.cost for found in allowed)
        alike = [found for found in allowed if found.cost <= least * (1 + self.noise)]
        best = min(alike, key=lambda found: (found.changed, found.cost))
        return best if best.cheaper > 1 + self.noise else None

    @property
    def front(self) -> list[Found]:
        """Those than which none is both cheaper and better, cheapest first."""
        best, front = -1.0, []
        for found in sorted(
            (self.baseline, *self.found), key=lambda found: (found.cost, -found.trial.accuracy)
        ):
            if not found.trial.failure and found.trial.accuracy > best:
                best = found.trial.accuracy
                front.append(found)
        return front


def lines(report: Report) -> Iterator[str]:
    chosen, front = report.chosen, report.front
    yield "# What the levers are worth together"
    yield ""
    yield (
        f"{report.requests} requests of {report.workload} ({report.questions} different), {report.concurrency} at a time, "
        f"greedy, streamed, through `penstock serve`; {report.machine}. A cost is seconds of this machine per answer: "
        f"{_milliseconds(report.baseline.cost)} ms at the baseline. Repeats lie {100 * report.noise:.1f} % apart at most."
    )
    if report.noise > NOISY:
        yield "**The machine was not quiet: what lies closer together than that is not told apart.**"
    if report.tried:
        yield f"{report.tried} other points were given up before, on {_list(report.rungs[:-1])} requests."
    yield ""
    yield f"Limits: at most {100 * report.limits.loss:g} % of all answers lost{_others(report.limits)}."
    yield ""
    if chosen is None:
        yield "**Nothing that was tried is cheaper within the limits.**"
    else:
        yield (
            f"**Chosen: {chosen.name}**, {chosen.cheaper:.2f} times cheaper per answer; "
            f"{100 * chosen.loss.value:+.2f} % of the answers lost "
            f"({100 * chosen.loss.low:+.2f} to {100 * chosen.loss.high:+.2f})."
        )
    yield ""
    yield f"| | cheaper | right | lost, 95 % of workloads | first token, {PERCENTILE} % | answer, {PERCENTILE} % | cache | |"
    yield "|---|---|---|---|---|---|---|---|"
    ordered = sorted(report.found, key=lambda found: found.cost)[:SHOWN]
    for found in (report.baseline, *ordered):
        marks = [
            *(["**chosen**"] if found is chosen else []),
            *(["on the front"] if found in front else []),
            *([found.broken] if found.broken else []),
        ]
        trial = found.trial
        if trial.failure:
            yield f"| {found.name} | | | | | | | {trial.failure} |"
            continue
        yield (
            f"| {found.name} | {found.cheaper:.2f}x | {100 * trial.accuracy:.1f} % | {100 * found.loss.value:+.2f} % "
            f"({100 * found.loss.low:+.2f} to {100 * found.loss.high:+.2f}) | {_milliseconds(trial.first_token)} ms | "
            f"{_milliseconds(trial.last_token)} ms | {_shares(trial)} | {', '.join(marks)} |"
        )


def as_dict(report: Report) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "workload": report.workload,
        "requests": report.requests,
        "questions": report.questions,
        "concurrency": report.concurrency,
        "machine": report.machine,
        "rounds": list(report.rungs),
        "noise": report.noise,
        "chosen": None if report.chosen is None else report.chosen.name,
        "hour_price": report.hour_price,
    }
    return {**figures, "points": [_figures(found) for found in (report.baseline, *report.found)]}


def _figures(found: Found) -> dict[str, Any]:
    trial = found.trial
    return {
        "name": found.name,
        "choices": dict(found.choices),
        "failure": trial.failure,
        "seconds_per_answer": [one.cost for one in found.trials],
        "cheaper": found.cheaper,
        "accuracy": trial.accuracy,
        "loss": [found.loss.value, found.loss.low, found.loss.high],
        "first_token_seconds": trial.first_token,
        "answer_seconds": trial.last_token,
        "cache": trial.outcomes,
        "models": trial.models,
        "broken": found.broken,
    }


def _spread(costs: Sequence[float]) -> float:
    """How far they lie apart, as a share of the middle one."""
    return 0.0 if len(costs) < 2 else (max(costs) - min(costs)) / median(costs)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


def _shares(trial: Trial) -> str:
    whole = sum(trial.outcomes.values())
    return ", ".join(
        f"{name} {100 * count / whole:.0f} %"
        for name, count in trial.outcomes.items()
        if name not in ("miss", "bypass")
    )


def _others(limits: Limits) -> str:
    words = [
        f"{says} {value:g} s"
        for says, value in (
            ("first tokens within", limits.first_token),
            ("answers within", limits.last_token),
            ("at most per answer", limits.cost),
        )
        if value is not None
    ]
    return "".join(f", {word}" for word in words)


def _list(numbers: Sequence[int]) -> str:
    return " and ".join(f"{number:,}" for number in numbers)
