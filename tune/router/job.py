"""The whole of `penstock tune router`, but for servers and arguments: collect, score, learn, write."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...compress.folder import WorkFolder
from ...errors import TuneError
from ...proxy.routing.learned.router_file import FORMAT, RouterFile
from .answers import AnswersFile
from .collect import LARGE, Progress, Tier, collect, embed
from .learn import Learned, learn
from .plot import draw
from .report import Report, as_dict, lines
from .rows import split
from .scoring import Price, Score, Scored, score_answers, timed_escalation, timed_prices
from .workload import Item, fingerprint


@dataclass(frozen=True, slots=True)
class RouterJob:
    """Attributes:
    small, large: the tiers' names, as a route will call them.
    workload: whose questions they are, for the report.
    drafts: the large tier takes the small one's answer as a draft.
    prices: of both tiers' tokens, per million; None: costs are seconds, as timed.
    buffers: after how many tokens a cascade may decide; 0: after all.
    embedding_model: of the large tier's server, for the questions; None: only their words are looked at.
    identity: what makes the tiers the same as in an earlier run.
    output: the router file; the report lies beside it.
    """

    small: str
    large: str
    workload: str
    score: Score
    qualities: Sequence[float]
    delta: float
    buffers: Sequence[int]
    max_tokens: int
    concurrency: int
    drafts: bool
    seed: int
    prices: tuple[Price, Price] | None
    embedding_model: str | None
    identity: Sequence[str]
    output: Path
    force: bool


def work_folder(job: RouterJob, items: Sequence[Item]) -> WorkFolder:
    """What was answered is kept there: the same for other scores, promises and seeds."""
    return WorkFolder(
        job.output,
        {"tiers": [*job.identity], "workload": fingerprint(items), "max_tokens": job.max_tokens},
    )


def make_router(
    job: RouterJob, tiers: tuple[Tier, Tier], items: Sequence[Item], work: WorkFolder, progress: Progress
) -> Report:
    """Writes the router file and the report.

    Raises TuneError where no router can be recommended: then only the report is written, unless `job.force`.
    """
    scored = ask_and_score(job, tiers, items, work, progress)
    report = learn_from(job, scored, job.seed)
    learned = report.learned
    _write(job.output.with_suffix(".md"), "\n".join(lines(report)).encode() + b"\n")
    figures = json.dumps(msgspec.to_builtins(as_dict(report)), indent=1)
    _write(job.output.with_suffix(".figures.json"), figures.encode() + b"\n")
    draw(report, [job.output.with_suffix(suffix) for suffix in (".png", ".svg")])
    if not any(policy.objection is None for policy in learned.policies) and not job.force:
        reasons = "; ".join(f"{policy.name}: {policy.objection}" for policy in learned.policies)
        raise TuneError(
            f"No router between {job.small} and {job.large} can be recommended. {reasons}. The report is "
            f"{job.output.with_suffix('.md')}; --force writes the router all the same."
        )
    found = router_file(job, learned)
    _write(job.output, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return report


def ask_and_score(
    job: RouterJob, tiers: tuple[Tier, Tier], items: Sequence[Item], work: WorkFolder, progress: Progress
) -> Scored:
    """Asks what `work` does not hold yet."""
    file = AnswersFile(work.path / "answers.jsonl")
    asyncio.run(
        collect(
            tiers,
            items,
            file,
            max_tokens=job.max_tokens,
            concurrency=job.concurrency,
            drafts=job.drafts,
            progress=progress,
        )
    )
    vectors = None
    if job.embedding_model is not None:
        texts = [item.question.text for item in items]
        vectors = asyncio.run(embed(tiers[LARGE], job.embedding_model, texts))
    prices = job.prices or timed_prices(file.answers)
    escalation = timed_escalation(file.answers) if job.drafts else 1.0
    return score_answers(items, file.answers, job.score, prices, escalation, vectors)


def learn_from(job: RouterJob, scored: Scored, seed: int) -> Report:
    parts = split(scored.rows, seed)
    return Report(
        small=job.small,
        large=job.large,
        workload=job.workload,
        score=job.score,
        cost_unit="seconds" if job.prices is None else "in the unit of --prices",
        delta=job.delta,
        questions=len(scored.rows) + scored.left_out,
        left_out=scored.left_out,
        refusal=scored.refusal,
        fitted=len(parts.fit),
        calibrated=len(parts.calibrate),
        tested=len(parts.test),
        learned=learn(parts, buffers=job.buffers, qualities=job.qualities, delta=job.delta),
    )


def router_file(job: RouterJob, learned: Learned) -> RouterFile:
    """Of what is recommended; with `job.force`, of all."""
    chosen = [policy for policy in learned.policies if job.force or policy.objection is None]
    predictive = [policy.ruling for policy in chosen if not policy.cascade]
    return RouterFile(
        format=FORMAT,
        small=job.small,
        large=job.large,
        score=job.score,
        delta=job.delta,
        cascade=tuple(policy.ruling for policy in chosen if policy.cascade),
        predictive=predictive[0] if predictive else None,
        # Only the judge of questions may look at vectors.
        embedding_model=job.embedding_model if predictive and predictive[0].inputs.vector_width else None,
    )


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all. Raises TuneError where it cannot be written."""
    staging = file.with_name(f".{file.name}.partial")
    try:
        staging.write_bytes(content)
        os.replace(staging, file)
    except OSError as error:
        raise TuneError(f"{file} cannot be written: {error.strerror}.", param="output") from error
