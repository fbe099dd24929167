"""What a turn of the flywheel found, as Markdown and as JSON. Computes nothing."""

from collections.abc import Iterator
from typing import Any

import msgspec

from .check import Checked
from .gain import Expected, Timings
from .student import Student


class Report(msgspec.Struct, frozen=True):
    """Attributes:
    asked: the model's name; teacher: what it is; present: the fingerprint of nothing else, as it was when measured.
    read, private, by_rule, repeated: see `Gathered`.
    distilled_on, routed_on: questions.
    timed: questions that timings are of; concurrency: at a time.
    router: what `penstock tune router` would advise, a line for each policy.
    checked: None where there was nothing to check.
    objection: why nothing is switched on; None: `changes` are.
    changes: to be laid over the settings file.
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
    expected: Expected
    checked: Checked | None
    objection: str | None
    changes: dict[str, Any]
    machine: str


WHAT = {
    "cascade": "the student answers first, and the model where the student's answer is not good enough",
    "predictive": "the student answers questions that it is picked for, the model all others",
    "drafts": "the student only guesses tokens for the model, which verifies them: answers are the same to the letter",
    "nothing": "the student is of no use here",
}


def lines(report: Report) -> Iterator[str]:
    expected, checked = report.expected, report.checked
    yield f"# A student of `{report.asked}`"
    yield ""
    if report.objection is not None:
        yield f"**Not to be switched on: {report.objection}.**"
    else:
        assert checked is not None
        yield (
            f"**{expected.policy.capitalize()}: {checked.cheaper:.2f} times cheaper per answer, as checked; "
            f"{expected.cheaper:.2f} was expected.** That is, {WHAT[expected.policy]}."
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
    if checked is not None:
        yield ""
        yield from _check(report, checked)


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
        + (f", and {report.checked.questions} more to check both." if report.checked else ".")
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


def _check(report: Report, checked: Checked) -> Iterator[str]:
    expected = report.expected
    yield "## Expected, and checked"
    yield ""
    yield (
        f"On {checked.questions} questions that neither student, router nor timings have seen, with the settings as they "
        f"are and as they would be. Repeats lie {100 * checked.noise:.1f} % apart at most."
    )
    yield ""
    yield "| | expected | checked |"
    yield "|---|---|---|"
    low, high = 1 / expected.high, 1 / expected.low
    around = f" [{low:.2f}, {high:.2f}]" if high > low else ""
    yield f"| times cheaper per answer | {expected.cheaper:.2f}{around} | {checked.cheaper:.2f} |"
    yield f"| ms per answer, now and then | | {1000 * checked.now:.1f}, {1000 * checked.new:.1f} |"
    yield f"| answers of the student | {expected.kept:.0%} | {checked.kept:.0%} |"
    promised = f"at least {report.quality:.0%}" if expected.kept else "all"
    same = 1 - checked.different / checked.questions
    yield f"| answers that say the same as the model's | {promised} | {same:.1%} |"


def as_json(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read_report(content: bytes) -> Report:
    """Raises msgspec.MsgspecError for what is none."""
    return msgspec.json.decode(content, type=Report)
