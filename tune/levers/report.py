"""What `penstock tune levers` found, as a table in Markdown and as JSON; and which point it chooses. Measures nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec

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
        trials: of the same point, repeated; the first is that which had it repeated.
        costs: seconds of the machine per answer, of the repeats: the first trial is left out where it was among the best by
            chance, perhaps, and there are two others.
        cheaper: than the baseline, so many times.
        broken: the limit it does not keep; empty where it keeps all.
        changed: levers that are not as in the baseline.
    """

    name: str
    choices: Mapping[str, str]
    trials: Sequence[Trial]
    loss: Loss
    costs: Sequence[float]
    cheaper: float
    broken: str
    changed: int

    @classmethod
    def of(
        cls, space: Space, trials: Sequence[Trial], loss: Loss, baseline: Sequence[Trial], limits: Limits
    ) -> "Found":
        first = trials[0]
        costs = _costs(trials)
        middle = msgspec.structs.replace(
            first,
            cost=median(costs),
            first_token=median(trial.first_token for trial in trials),
            last_token=median(trial.last_token for trial in trials),
            failure=next((trial.failure for trial in trials if trial.failure), ""),
        )
        return cls(
            name=space.named(first.point),
            choices=space.described(first.point),
            trials=trials,
            loss=loss,
            costs=costs,
            cheaper=median(_costs(baseline)) / median(costs),
            broken=limits.broken(middle, loss),
            changed=sum(map(bool, first.point)),
        )

    @property
    def cost(self) -> float:
        return median(self.costs)

    @property
    def noise(self) -> float:
        """How far repeats lie apart, as a share of the middle one."""
        return (
            0.0
            if len(self.costs) < 2 or self.trial.failure
            else (max(self.costs) - min(self.costs)) / self.cost
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
    machine: str

    @property
    def noise(self) -> float:
        return max(found.noise for found in (self.baseline, *self.found))

    @property
    def chosen(self) -> Found | None:
        """The cheapest that keeps the limits, of those measured most often, each time cheaper than the baseline ever was.

        Of those whose costs reach into its own, the one with the fewest levers moved. None where there is none.
        """
        most = max((len(found.trials) for found in self.found if not found.broken), default=0)
        floor = min(self.baseline.costs)
        clear = [
            found
            for found in self.found
            if not found.broken and len(found.trials) == most and max(found.costs) < floor
        ]
        if not clear:
            return None
        best = min(clear, key=lambda found: found.cost)
        alike = [found for found in clear if min(found.costs) <= max(best.costs)]
        return min(alike, key=lambda found: (found.changed, found.cost))

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
        f"{_milliseconds(report.baseline.cost)} ms at the baseline. {_repeats(report)}"
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
    }
    return {**figures, "points": [_figures(found) for found in (report.baseline, *report.found)]}


def _figures(found: Found) -> dict[str, Any]:
    trial = found.trial
    if trial.failure:
        return {"name": found.name, "choices": dict(found.choices), "failure": trial.failure}
    return {
        "name": found.name,
        "choices": dict(found.choices),
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


def _repeats(report: Report) -> str:
    if len(report.baseline.trials) < 2:
        return "Each was measured once: how much of a difference is noise is not known."
    return f"Repeats lie {100 * report.noise:.1f} % apart at most."


def _costs(trials: Sequence[Trial]) -> list[float]:
    return [trial.cost for trial in (trials[1:] if len(trials) > 2 else trials)]


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
