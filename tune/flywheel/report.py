"""What a turn of the flywheel found, as Markdown and as JSON. Computes nothing."""

from collections.abc import Iterator
from typing import Any

import msgspec

from .check import Checked, Rehearsed
from .gain import Timings
from .student import Student
from .weights import Weights


class Report(msgspec.Struct, frozen=True):
    """Attributes:
    asked: the model's name; teacher: what it is.
    read, private, by_rule, repeated: see `Gathered`.
    distilled_on, routed_on: questions.
    timed: questions that timings are of; concurrency: at a time.
    router: what `penstock tune router` would advise, a line for each policy.
    rehearsed: options, the cheapest by figures first, up to the one that is chosen.
    objection: why nothing is switched on; None: `changes` are.
    changes: to be laid over the settings file.
    weights: what it was made with; None of a report that was written before they were noted.
    """

    asked: str
    teacher: str
    read: int
    private: int
    by_rule: dict[str, int]
    repeated: int
    distilled_on: int
    routed_on: int
    student: Student
    quality: float
    delta: float
    timed: int
    concurrency: int
    timings: Timings
    router: list[str]
    rehearsed: list[Rehearsed]
    objection: str | None
    changes: dict[str, Any]
    machine: str
    weights: Weights | None = None

    @property
    def chosen(self) -> Rehearsed | None:
        """What does as it should."""
        return self.rehearsed[-1] if self.rehearsed and self.objection is None else None

    @property
    def num_checked(self) -> int:
        """Questions that were put aside."""
        return max((one.checked.questions for one in self.rehearsed if one.checked), default=0)


WHAT = {
    "cascade": "the student answers first, and the model where the student's answer is not good enough",
    "predictive": "the student answers questions that it is picked for, the model all others",
    "drafts": "the student only guesses tokens for the model, which verifies them: answers stay the model's own",
}


def lines(report: Report) -> Iterator[str]:
    chosen = report.chosen
    yield f"# A student of `{report.asked}`"
    yield ""
    if chosen is None or chosen.checked is None:
        yield f"**Not to be switched on: {report.objection}.**"
    else:
        policy = chosen.option.policy
        yield (
            f"**{policy.capitalize()}: {chosen.checked.cheaper:.2f} times cheaper per answer, as checked; "
            f"{chosen.seen.cheaper:.2f} was expected.** That is, {WHAT[policy]}."
        )
    yield ""
    yield from _data(report)
    yield ""
    yield from _student(report.student)
    yield ""
    yield from _timings(report)
    if report.router:
        yield ""
        yield from (f"- {line}" for line in report.router)
    if report.rehearsed:
        yield ""
        yield from _gains(report)


def _data(report: Report) -> Iterator[str]:
    yield "## Data"
    yield ""
    left_out = f"{report.private} are left out for what rules found in them"
    if report.by_rule:
        counts = ", ".join(f"{name} in {count}" for name, count in sorted(report.by_rule.items()))
        left_out += f" ({counts})"
    yield (
        f"{report.read} answers that the cache kept with their prompts. {left_out}; {report.repeated} ask what another does "
        f"but for case, numbers, punctuation and the order of words. {report.distilled_on} questions to distil from, "
        f"{report.routed_on} others to make the router with"
        + (f", and {report.num_checked} more to check both." if report.num_checked else ".")
    )


def _student(student: Student) -> Iterator[str]:
    yield "## Student"
    yield ""
    if student.kl is None or student.greedy is None:
        yield f"`{student.folder}`, as it was."
        return
    yield (
        f"{student.steps} steps in {student.minutes:.1f} minutes. Beside its teacher, on {student.texts} answers that it "
        f"has not seen: KL {student.kl:.3f} nats per token; {100 * student.greedy:.1f} % of its greedy tokens stand."
    )


def _timings(report: Report) -> Iterator[str]:
    timings = report.timings
    yield "## What an answer takes"
    yield ""
    yield (
        f"{report.timed} questions, {report.concurrency} at a time, greedy, streamed, through `penstock serve` without its "
        f"cache: what the cache answers costs the same before and after. {report.machine}."
    )
    yield ""
    yield "| | ms per answer | beside now |"
    yield "|---|---|---|"
    rows = [("the model, as it is served", timings.large)]
    if timings.guesses:
        rows.append(("with the student guessing for it", timings.main))
    rows += [("with the student's answers as drafts", timings.escalated), ("the student", timings.small)]
    for name, seconds in rows:
        yield f"| {name} | {1000 * seconds / report.timed:.1f} | {seconds / timings.large:.2f} |"
    if not timings.guesses:
        yield ""
        yield "Guessing for its teacher, the student is not worth its time here: it saves less than it takes."


def _gains(report: Report) -> Iterator[str]:
    yield "## Expected, and checked"
    yield ""
    yield (
        "Answers with the settings as they are, and as they would be. *By figures*: by the timings above and what the "
        "router keeps, as if both models had the machine in turn. *Rehearsed*: "
        f"{report.rehearsed[0].seen.questions} questions that the router was made with. What that shows is expected"
        + (
            f" of the {report.num_checked} questions that neither student, router nor timings have seen: *checked*."
            if report.num_checked
            else "."
        )
    )
    yield ""
    yield "| | times cheaper by figures | rehearsed | checked | of the student | say the same | repeats apart |"
    yield "|---|---|---|---|---|---|---|"
    for one in report.rehearsed:
        by_figures = f"{1 / one.option.cost:.2f} [{1 / one.option.high:.2f}, {1 / one.option.low:.2f}]"
        yield f"| {one.option.policy} | {by_figures} | {_seen(one.seen)} |"
        if one.checked is not None:
            yield f"| {one.option.policy} | | {_seen(one.checked, is_check=True)} |"


def _seen(seen: Checked, *, is_check: bool = False) -> str:
    gain = f"{seen.cheaper:.2f} ({1000 * seen.now:.1f} to {1000 * seen.new:.1f} ms)"
    gains = f"| **{gain}**" if is_check else f"{gain} |"
    return f"{gains} | {seen.kept:.0%} | {1 - seen.different / seen.questions:.1%} | {seen.noise:.0%}"


def as_json(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read_report(content: bytes) -> Report:
    """Raises msgspec.MsgspecError for what is none."""
    return msgspec.json.decode(content, type=Report)
