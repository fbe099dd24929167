"""What lm-evaluation-harness found of several models: its scores with intervals, and the first model beside each other.

Reads the harness's results; imports nothing of it.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .accuracy import accuracy
from .estimate import Estimate, Z, share
from .report import aligned, shown

NAME = "harness"


@dataclass(frozen=True, slots=True)
class Score:
    """Of one metric of a task.

    Attributes:
        value: as the harness reports it.
        samples: what each question came to, where the value is their mean; empty where it is not.
        higher_is_better: None where the task does not say.
    """

    value: float
    samples: list[float]
    higher_is_better: bool | None

    @property
    def estimate(self) -> Estimate | None:
        """None where nothing is known of the samples: of a perplexity, a corpus's BLEU, a group of tasks."""
        if not self.samples:
            return None
        if _are_shares(self.samples):
            return share(round(sum(self.samples)), len(self.samples))
        return _mean(self.samples)

    def change(self, reference: "Score") -> Estimate | None:
        """This less `reference`, question by question."""
        if not self.samples or len(self.samples) != len(reference.samples):
            return None
        if _are_shares(self.samples) and _are_shares(reference.samples):
            return accuracy([s == 1 for s in self.samples], [s == 1 for s in reference.samples]).change
        return _mean([mine - theirs for mine, theirs in zip(self.samples, reference.samples, strict=True)])


# By "task: metric", with the harness's filter where that is none of the plain ones.
Scores = Mapping[str, Score]


@dataclass(frozen=True, slots=True)
class HarnessReport:
    """Attributes:
    precisions: of the models, by name, in the order they were named.
    shots: examples before each question, by task.
    scores: by model. All have the same ones.
    """

    machine: str
    shots: Mapping[str, int]
    precisions: Mapping[str, str]
    scores: Mapping[str, Scores]


def scores(results: Mapping[str, Any]) -> Scores:
    """Of what the harness's `simple_evaluate` returns."""
    found = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            samples = _samples(results["samples"].get(task, ()), metric, kind, float(value))
            better = results["higher_is_better"].get(task, {}).get(metric)
            found[f"{task}: {metric}" + ("" if kind == "none" else f" ({kind})")] = Score(
                float(value), samples, better
            )
    return found


def as_dict(report: HarnessReport) -> dict[str, Any]:
    """Plain values for JSON, the intervals among them."""
    plain = dataclasses.asdict(report)
    for model, found in report.scores.items():
        for name, score in found.items():
            estimate = score.estimate
            plain["scores"][model][name]["estimate"] = (
                None if estimate is None else dataclasses.asdict(estimate)
            )
    return plain


def tables(report: HarnessReport) -> Iterator[str]:
    """Markdown, line by line: a row for each metric, a column for each model, and what changed on the first."""
    first, *others = report.precisions
    yield report.machine
    yield ""
    yield "; ".join(f"{name}: {precision}" for name, precision in report.precisions.items())
    yield "examples before each question: " + ", ".join(
        f"{task} {count}" for task, count in report.shots.items()
    )
    yield ""
    cells = [["", first, *(title for name in others for title in (name, f"beside {first}"))]]
    for metric, score in report.scores[first].items():
        arrow = {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]
        row = [metric + arrow, _value(score)]
        for name in others:
            other = report.scores[name][metric]
            change = other.change(score)
            row += [_value(other), "" if change is None else shown(change, "+.4f")]
        cells.append(row)
    yield from aligned(cells)


def _value(score: Score) -> str:
    return f"{score.value:.4g}" if score.estimate is None else shown(score.estimate, ".4f")


def _samples(found: Sequence[Mapping[str, Any]], metric: str, kind: str, value: float) -> list[float]:
    """Empty where `value` is something else than their mean."""
    own = [sample[metric] for sample in found if sample.get("filter") == kind and metric in sample]
    if not own or not all(isinstance(one, int | float) for one in own):
        return []
    numbers = [float(one) for one in own]
    return numbers if math.isclose(sum(numbers) / len(numbers), value, abs_tol=1e-9) else []


def _are_shares(samples: Sequence[float]) -> bool:
    return all(sample in (0.0, 1.0) for sample in samples)


def _mean(samples: Sequence[float]) -> Estimate | None:
    """Of independent samples, by the normal distribution; None of one alone, which may be off by anything."""
    count = len(samples)
    if count == 1:
        return None
    mean = sum(samples) / count
    half = Z * math.sqrt(sum((sample - mean) ** 2 for sample in samples) / (count - 1) / count)
    return Estimate(mean, mean - half, mean + half, count)
