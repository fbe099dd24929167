"""A router between student and teacher, from answers and timings that are there: asks nobody."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...errors import TuneError
from ..router.collect import LARGE, SMALL
from ..router.job import RouterJob, learn_from, router_file
from ..router.learn import Policy
from ..router.plot import draw
from ..router.report import Report, as_dict, lines
from ..router.scoring import Price, Score, score_answers
from ..router.workload import Item
from .asking import Answers, tokens_of
from .gain import Timings

# Beside the promise that is asked for, these stand in the file, for a change of mind.
_QUALITIES = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Router:
    """`objection`: why there is none at all; then it has no policies."""

    job: RouterJob
    report: Report | None
    objection: str = ""

    @property
    def policies(self) -> list[Policy]:
        return [] if self.report is None else self.report.learned.policies

    def advice(self, quality: float) -> list[str]:
        """A line for each policy, of Markdown."""
        if self.report is None:
            return [f"No router: {self.objection}"]
        return [_advice(policy, quality) for policy in self.policies]

    def write(self, folder: Path) -> None:
        """The report and, where a policy is recommended, the file. Raises OSError."""
        if self.report is None:
            return
        (folder / "router.md").write_text("\n".join(lines(self.report)) + "\n", encoding="utf-8")
        figures = json.dumps(msgspec.to_builtins(as_dict(self.report)), indent=1)
        (folder / "router.figures.json").write_text(figures + "\n", encoding="utf-8")
        draw(self.report, [folder / "router.png"])
        if any(policy.objection is None for policy in self.policies):
            content = msgspec.json.encode(router_file(self.job, self.report.learned))
            (folder / self.job.output.name).write_bytes(msgspec.json.format(content, indent=1) + b"\n")


def make_router(
    small: str,
    large: str,
    items: Sequence[Item],
    answers: Answers,
    timings: Timings,
    timed: Sequence[int],
    *,
    score: Score,
    quality: float,
    delta: float,
    max_tokens: int,
    concurrency: int,
    seed: int,
) -> Router:
    """Costs are seconds of the machine with so many requests at a time, as timed of the questions at the places `timed`."""
    prices = (
        Price(0.0, timings.small / tokens_of(answers, timed, SMALL)),
        Price(0.0, timings.main / tokens_of(answers, timed, LARGE)),
    )
    job = RouterJob(
        small=small,
        large=large,
        workload="the cache",
        score=score,
        qualities=sorted({*_QUALITIES, quality}),
        delta=delta,
        buffers=[0],
        max_tokens=max_tokens,
        concurrency=concurrency,
        drafts=True,
        seed=seed,
        prices=prices,
        embedding_model=None,
        identity=[],
        output=Path("router.json"),
        force=False,
    )
    try:
        scored = score_answers(items, answers, score, prices, timings.escalated / timings.main)
        report = learn_from(job, scored, seed)
    except TuneError as error:  # a student that is no cheaper, or as good as its teacher, for one
        return Router(job, None, error.message)
    return Router(job, dataclasses.replace(report, cost_unit="seconds of the machine"))


def _advice(policy: Policy, quality: float) -> str:
    if policy.objection is not None:
        return f"**{policy.name}: not recommended**: {policy.objection}."
    promise = next(promise for promise in policy.promises if promise.threshold.quality == quality)
    if not promise.pays:
        return f"**{policy.name}**: recommended, but keeping the promise {quality:g} saves nothing."
    return (
        f"**{policy.name}: recommended**, with `quality = {quality:g}`: {promise.kept:.0%} of the answers come from the "
        f"student, the cost is {promise.cost.value:.2f} of asking the model only."
    )
