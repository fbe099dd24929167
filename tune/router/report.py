"""What `penstock tune router` found, as Markdown and as JSON. Computes nothing."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..bootstrap import Estimate
from .curve import PLACES
from .learn import Learned, Policy, Promise

JUDGED = {
    "matcher": "right, as the matchers of the workload have it",
    "agreement": "right where it says the same as the large tier",
    "command": "right where its command does the same as the large tier's",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Attributes:
    small, large: the tiers' names.
    score: a key of `JUDGED`.
    cost_unit: of an answer's cost.
    questions: of the workload; `left_out`: that a tier refused, and why.
    fitted, calibrated, tested: rows for each purpose.
    """

    small: str
    large: str
    workload: str
    score: str
    cost_unit: str
    delta: float
    questions: int
    left_out: int
    refusal: str
    fitted: int
    calibrated: int
    tested: int
    learned: Learned


def as_dict(report: Report) -> dict[str, Any]:
    """Plain values for JSON; the weights stand in the router file."""
    learned = report.learned
    values = dataclasses.asdict(dataclasses.replace(report, learned=None))  # type: ignore[arg-type]
    values["learned"] = {
        **dataclasses.asdict(dataclasses.replace(learned, policies=[])),
        "places": PLACES,
        "policies": [
            {
                "name": policy.name,
                "objection": policy.objection,
                "inputs": policy.ruling.inputs,
                "curve": dataclasses.asdict(policy.curve),
                "promises": [dataclasses.asdict(promise) for promise in policy.promises],
            }
            for policy in learned.policies
        ],
    }
    return values


def lines(report: Report) -> Iterator[str]:
    """Markdown, line by line; what stands in brackets holds the true value in 95 of 100 such measurements."""
    learned = report.learned
    yield f"# Router between `{report.small}` and `{report.large}`"
    yield ""
    for policy in learned.policies:
        yield f"- {_advice(policy)}"
    yield ""
    yield (
        f"{report.questions} different questions of {report.workload}; an answer is {JUDGED[report.score]}. The judges are "
        f"fitted to {report.fitted}, thresholds set on {report.calibrated} others, promises tested on {report.tested} more. "
        "Costs and curves are of what the fit has not seen."
    )
    if report.left_out:
        yield f"{report.left_out} questions are left out, which a tier refused: {report.refusal}"
    if learned.without_logprobs:
        yield f"{learned.without_logprobs} of the small tier's answers came without log-probabilities."
    yield ""
    yield from _table(
        ["tier", "right", f"cost of an answer, {report.cost_unit}", "beside the large tier"],
        [
            [f"`{report.small}`", _percent(learned.small_right), *_cost(learned.small_cost, learned)],
            [f"`{report.large}`", _percent(learned.large_right), *_cost(learned.large_cost, learned)],
            ["both, always escalated", "", *_cost(learned.small_cost + learned.escalated_cost, learned)],
        ],
    )
    for policy in learned.policies:
        yield ""
        yield f"## {policy.name.capitalize()}"
        yield ""
        yield from _promises(policy, report.delta)
    yield ""
    yield "## Right answers at equal cost"
    yield ""
    yield (
        "Of a random mix of both tiers (always escalated, where that is cheaper than the large one alone), of each router, "
        "and of an oracle that knows which tier is right; costs beside the large tier's."
    )
    yield ""
    yield from _curves(learned)


def _advice(policy: Policy) -> str:
    if policy.objection:
        return f"**{policy.name}: not recommended**: {policy.objection}."
    best = max((p for p in policy.promises if p.pays), key=lambda p: p.threshold.quality)
    return (
        f"**{policy.name}: recommended**, with `quality = {best.threshold.quality:g}`: {best.kept:.0%} of the answers come "
        f"from the small tier, the cost is {best.cost.value:.2f} of the large tier's alone, and the quality "
        f"{_percent(best.quality)} of its."
    )


def _promises(policy: Policy, delta: float) -> Iterator[str]:
    gain = policy.curve.mean_gain
    yield (
        f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] more right answers than a random "
        f"mix of the same cost, on average over the costs between the tiers'. Looks at {_inputs(policy)}."
    )
    yield ""
    yield (
        f"A promise: of the questions that the large tier answers right, at least so many stay right, with confidence "
        f"{1 - delta:g}."
    )
    yield ""
    yield from _table(
        ["promise", "threshold", "lost, of those it is set on", "kept", "stays right", "quality", "cost"],
        [_promise(promise) for promise in policy.promises],
    )


def _promise(promise: Promise) -> list[str]:
    threshold = promise.threshold
    if threshold.score is None:
        return [f"{threshold.quality:g}", "none", f"of {threshold.questions}", "", "", "", ""]
    return [
        f"{threshold.quality:g}",
        "set" if promise.pays else "set, but does not pay",
        f"{threshold.losses} of {threshold.questions}",
        f"{promise.kept:.0%}",
        _percent(promise.stays),
        _percent(promise.quality),
        _number(promise.cost),
    ]


def _inputs(policy: Policy) -> str:
    inputs = policy.ruling.inputs
    what = [f"{len(inputs.features)} features"]
    if inputs.word_buckets:
        what.append(f"{inputs.word_buckets} buckets of words")
    if inputs.vector_width:
        what.append(f"an embedding of {inputs.vector_width}")
    return " and ".join(what)


def _curves(learned: Learned) -> Iterator[str]:
    small, large = learned.small_right.value, learned.large_right.value
    cheap, dear = learned.small_cost / learned.large_cost, learned.dear_cost / learned.large_cost
    rows = []
    for place in range(1, len(PLACES), 3):
        share = PLACES[place]
        cells = [f"{cheap + share * (dear - cheap):.2f}", f"{100 * (small + share * (large - small)):.1f} %"]
        cells += [_percent(policy.curve.quality[place]) for policy in learned.policies]
        rows.append([*cells, f"{100 * learned.oracle.quality[place].value:.1f} %"])
    names = [policy.name for policy in learned.policies]
    yield from _table(["cost", "random mix", *names, "oracle"], rows)


def _cost(value: float, learned: Learned) -> list[str]:
    return [f"{value:.4g}", f"{value / learned.large_cost:.2f}"]


def _percent(measured: Estimate) -> str:
    return f"{100 * measured.value:.1f} % [{100 * measured.low:.1f}, {100 * measured.high:.1f}]"


def _number(measured: Estimate) -> str:
    return f"{measured.value:.2f} [{measured.low:.2f}, {measured.high:.2f}]"


def _table(titles: list[str], rows: list[list[str]]) -> Iterator[str]:
    cells = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *body = (
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    )
    yield head
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    yield from body
