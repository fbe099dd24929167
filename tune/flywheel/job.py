"""The whole of `penstock flywheel`, but for arguments and the switch: gather, distil, route, expect, check, write.

What a stage found is kept until all is written: the same job goes on where it was interrupted, with the traffic that it
began with.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from ...cache.private_file import private_file
from ...compress.folder import WorkFolder, new_folder
from ...compress.machine import machine
from ...compress.texts import Example
from ...config import Settings
from ..router.answers import AnswersFile
from ..router.collect import Progress, Tier
from ..router.scoring import SAME
from ..router.workload import Item, items_of
from .asking import Asked, ask_both, to_time
from .check import NEW, NOW, Checked, checked
from .gain import GUESSED, GUESSED_DRAFTED, LARGE, LARGE_DRAFTED, SMALL, Expected, Timings, expected
from .gather import Gathered, gather
from .pii import Rule
from .plot import draw
from .report import Report, as_json, lines
from .routing import Router, make_router
from .settings import Names, Routed, Turn, alone, changes, measured, student_of
from .settings_text import with_changes
from .split import Parts, split
from .stages import Stages
from .student import Student, distilled
from .timing import Asking, Candidate, Drafted, served, timed

SETTINGS, FIGURES, STUDENT, ROUTER = "penstock.toml", "flywheel.json", "student", "router.json"
# Shares of the minutes; starting servers comes on top.
_DISTIL, _ASK, _TIME, _CHECK = 0.5, 0.2, 0.1, 0.2
# At least and at most so many questions, however fast they are answered.
_TIMED, _CHECKED = (16, 64), (40, 300)
_STAGES = ("gathering", "distilling", "asking both models", "timing", "checking", "writing")


@dataclass(frozen=True, slots=True)
class FlywheelJob:
    """Attributes:
    identity: what makes it the same job as an interrupted one.
    settings: what is served now; present: what of that is no default, as the settings file would have it.
    text: of the settings file.
    layers: of the student to be; or student: one that is there.
    quantize: as the student is served.
    minutes: about how long all takes.
    quality: share of the answers that must go on saying the same as the model's; delta: may fail in so many.
    context: tokens that are learnt of each text.
    output: a folder that is not there yet.
    """

    identity: Mapping[str, Any]
    settings: Settings
    present: Mapping[str, Any]
    text: str
    rules: Mapping[str, Rule]
    layers: int | None
    student: Path | None
    quantize: str
    minutes: float
    quality: float
    delta: float
    score: Literal["agreement", "command"]
    context: int
    asking: Asking
    seed: int
    output: Path


def turn(job: FlywheelJob, examples: Callable[[], Iterable[Example]], progress: Progress) -> Report:
    """Writes the folder; where nothing is to be gained, without settings.

    Args:
        examples: reads the traffic.

    Raises PenstockError as its parts do; KeyboardInterrupt after Ctrl-C.
    """
    work = WorkFolder(job.output, job.identity)
    try:
        report = _Turn(job, work.path, progress).made(examples)
    except BaseException:
        work.close()
        raise
    work.done()
    return report


class _Turn:
    def __init__(self, job: FlywheelJob, folder: Path, progress: Progress) -> None:
        self.job, self.folder, self._progress = job, folder, progress
        self.stages = Stages(folder)
        self.names = Names.of(job.settings)

    def made(self, examples: Callable[[], Iterable[Example]]) -> Report:
        job = self.job
        self._now_at("gathering")
        gathered = self.stages.once("gathered", Gathered, lambda: self._gathered(examples()))
        parts = self._parts(gathered)
        self._now_at("distilling")
        student = self.stages.once("student", Student, lambda: self._student(parts))
        self._now_at("asking both models")
        items = items_of(parts.router)
        asked = self.stages.once("asked", Asked, lambda: self._asked(items, student))
        items, answers = items[: asked.questions], AnswersFile(self._answers).answers
        self._now_at("timing")
        places = to_time(items, answers, SAME[job.score], self._most(_TIME, 5, asked, _TIMED))
        timings = self._timings([(items[place], answers[place, 0].text or "") for place in places], student)
        router = make_router(
            self.names.small,
            self.names.asked,
            items,
            answers,
            timings,
            places,
            score=job.score,
            quality=job.quality,
            delta=job.delta,
            max_tokens=job.asking.max_tokens,
            concurrency=job.asking.concurrency,
            seed=job.seed,
        )
        expectation = expected(timings, router.policies, job.quality)
        self._now_at("checking")
        check = None
        if expectation.policy != "nothing":
            router.write(self.folder)
            count = self._most(_CHECK, 2, asked, _CHECKED)
            check = self._checked(items_of(parts.check)[:count], student, timings, expectation)
        self._now_at("writing")
        report = Report(
            asked=self.names.asked,
            teacher=job.settings.model,
            read=gathered.read,
            private=gathered.private,
            by_rule=gathered.by_rule,
            repeated=gathered.repeated,
            distilled_on=len(parts.distil),
            routed_on=len(items),
            student=self._placed(student),
            quality=job.quality,
            delta=job.delta,
            timed=len(places),
            concurrency=job.asking.concurrency,
            timings=timings,
            router=router.advice,
            expected=expectation,
            checked=check,
            objection=self._objection(router, expectation, check),
            changes=changes(
                self._turn(job.output, self._placed(student), timings, expectation), self.names, job.settings
            ),
            machine=machine(),
        )
        self._write(report, router, student)
        return report

    def _now_at(self, stage: str) -> None:
        self._progress("flywheel", _STAGES.index(stage), len(_STAGES))

    def _gathered(self, examples: Iterable[Example]) -> Gathered:
        found = gather(examples, self.job.rules)
        self._parts(found)  # raises where there are too few: then more traffic may come
        return found

    def _parts(self, gathered: Gathered) -> Parts:
        return split(gathered.examples, gathered.groups, distils=self.job.student is None)

    @property
    def _answers(self) -> Path:
        return self.folder / "answers.jsonl"

    def _student(self, parts: Parts) -> Student:
        job = self.job
        if job.student is not None:
            return Student(str(job.student))
        assert job.layers is not None
        return distilled(
            job.settings.model,
            job.layers,
            parts.distil,
            self.folder / STUDENT,
            minutes=_DISTIL * job.minutes,
            context=job.context,
            seed=job.seed,
            device=job.settings.device,
        )

    def _asked(self, items: list[Item], student: Student) -> Asked:
        job = self.job
        with ExitStack() as stack:
            large = Tier(stack.enter_context(served(alone(job.present))), self.names.asked)
            small = Tier(stack.enter_context(served(self._alone(student))), self.names.small)
            return ask_both(
                (small, large),
                items,
                self._answers,
                seconds=60 * _ASK * job.minutes,
                max_tokens=job.asking.max_tokens,
                concurrency=job.asking.concurrency,
                progress=self._progress,
            )

    def _alone(self, student: Student) -> dict[str, Any]:
        own = student_of(Path(student.folder), self.job.quantize, self.job.settings)
        return measured({**own, "served_model_name": self.names.small})

    def _most(self, share: float, times: int, asked: Asked, between: tuple[int, int]) -> int:
        """How many questions are asked so often, in each repeat, within this share of the time."""
        least, most = between
        seconds = 60 * share * self.job.minutes
        fit = seconds / (asked.seconds * times * self.job.asking.repeats)
        return int(min(max(fit, least), most))

    def _timings(self, questions: list[tuple[Item, str]], student: Student) -> Timings:
        """`questions`: with the student's answers."""
        names, large = self.names, alone(self.job.present)
        guesses = changes(
            Turn(Path(student.folder), self.job.quantize, None, drafts=True), names, self.job.settings
        )
        guessed = {**large, **guesses}
        plain = [item for item, _ in questions]
        # A text that is gone on from has no predicted output.
        drafted = [Drafted(item, text) if item.asked.messages else item for item, text in questions]
        return Timings.of(
            timed(
                {
                    LARGE: Candidate(large, names.asked, plain),
                    GUESSED: Candidate(guessed, names.asked, plain),
                    SMALL: Candidate(self._alone(student), names.small, plain),
                    LARGE_DRAFTED: Candidate(large, names.asked, drafted),
                    GUESSED_DRAFTED: Candidate(guessed, names.asked, drafted),
                },
                self.job.asking,
                self.stages,
                self._progress,
            )
        )

    def _turn(self, folder: Path, student: Student, timings: Timings, expectation: Expected) -> Turn:
        """`folder`: where the router file lies."""
        job, route = self.job, None
        if expectation.policy in ("cascade", "predictive"):
            # What a shadow looks at is agreement: commands that do the same in other words would count as losses.
            shadowed = job.score == "agreement"
            route = Routed(expectation.policy, folder.resolve() / ROUTER, job.quality, shadowed)
        return Turn(Path(student.folder), job.quantize, route, drafts=timings.guesses)

    def _checked(
        self, items: list[Item], student: Student, timings: Timings, expectation: Expected
    ) -> Checked:
        job, names = self.job, self.names
        changed = changes(self._turn(self.folder, student, timings, expectation), names, job.settings)
        runs = timed(
            {
                NOW: Candidate(measured(job.present), names.asked, items),
                NEW: Candidate(measured(job.present, changed), names.asked, items),
            },
            job.asking,
            self.stages,
            self._progress,
        )
        return checked(runs[NOW], runs[NEW], names.small, SAME[job.score])

    def _objection(self, router: Router, expectation: Expected, check: Checked | None) -> str | None:
        if check is not None:
            return check.objection(self.job.quality)
        reasons = [policy.objection for policy in router.policies if policy.objection]
        reasons += [router.objection] if router.objection else []
        return "; ".join(
            [
                "guessing, the student saves no time",
                *(reasons or [f"no router keeps the promise {self.job.quality:g} and saves anything"]),
            ]
        )

    def _placed(self, student: Student) -> Student:
        """Where it will lie."""
        if self.job.student is not None:
            return student
        return msgspec.structs.replace(student, folder=str(self.job.output.resolve() / STUDENT))

    def _write(self, report: Report, router: Router, student: Student) -> None:
        with new_folder(self.job.output) as folder:
            if self.job.student is None:
                shutil.copytree(student.folder, folder / STUDENT)
            router.write(folder)
            (folder / "flywheel.md").write_text("\n".join(lines(report)) + "\n", encoding="utf-8")
            (folder / FIGURES).write_bytes(as_json(report))
            draw(report, folder / "flywheel.png")
        if report.objection is None:
            # There may be keys in it.
            with private_file(self.job.output / SETTINGS) as file:
                file.write(with_changes(self.job.text, report.changes).encode())
