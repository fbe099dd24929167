"""The whole of `penstock flywheel`, but for arguments and the switch: gather, distil, route, rehearse, check, write.

What a stage found is kept until all is written: the same job goes on where it was interrupted, with the traffic that it
began with.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from ...cache.private_file import private_file
from ...compress.distill.run import training_device
from ...compress.folder import WorkFolder, new_folder
from ...compress.machine import machine
from ...compress.texts import Example
from ...models.fingerprint import fingerprint
from ..router.answers import AnswersFile
from ..router.collect import SMALL, Progress
from ..router.scoring import SAME
from ..router.workload import Item, items_of
from .asking import Asked, to_time
from .check import Rehearsed
from .gain import Timings, options
from .gather import Gathered, gather
from .job import FlywheelJob
from .plot import draw
from .report import Report, as_json, lines
from .routing import Router, make_router
from .settings import Names
from .settings_text import with_changes
from .split import Parts, split
from .stages import Stages
from .student import Student, distilled
from .trials import Trials, changed_settings
from .weights import Weights

SETTINGS, FIGURES, STUDENT = "penstock.toml", "flywheel.json", "student"
# Shares of the minutes; starting servers comes on top.
_DISTIL, _ASK, _TIME, _REHEARSE, _CHECK = 0.5, 0.15, 0.1, 0.1, 0.15
# At least and at most so many questions, however fast they are answered.
_TIMED, _REHEARSED, _CHECKED = (16, 200), (40, 200), (40, 500)
_STAGES = ("gathering", "distilling", "asking both models", "timing", "rehearsing", "checking", "writing")


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
        trials = Trials(job, self.names, student, self.folder, self.stages, self._progress)
        items, file = items_of(parts.router), self.folder / "answers.jsonl"
        asked = self.stages.once(
            "asked", Asked, lambda: trials.ask(items, file, seconds=60 * _ASK * job.minutes)
        )
        items, answers = items[: asked.questions], AnswersFile(file).answers
        self._now_at("timing")
        places = to_time(items, answers, SAME[job.score], self._most(_TIME, 5, asked, _TIMED))
        timings = trials.timings([(items[place], answers[place, SMALL].text or "") for place in places])
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
        router.write(self.folder)
        used = items[: self._most(_REHEARSE, 2, asked, _REHEARSED)]
        unseen = items_of(parts.check)[: self._most(_CHECK, 2, asked, _CHECKED)]
        rehearsed = self._rehearsed(trials, used, unseen, timings, router)
        objection = _objection(router, rehearsed, job.quality)
        self._now_at("writing")
        placed, changed = self._placed(student), dict[str, Any]()
        if objection is None:
            chosen = rehearsed[-1].option
            changed = changed_settings(job, self.names, placed, job.output, timings, chosen)
        report = Report(
            asked=self.names.asked,
            teacher=job.settings.model,
            read=gathered.read,
            private=gathered.private,
            by_rule=gathered.by_rule,
            repeated=gathered.repeated,
            distilled_on=len(parts.distil),
            routed_on=len(items),
            student=placed,
            quality=job.quality,
            delta=job.delta,
            timed=len(places),
            concurrency=job.asking.concurrency,
            timings=timings,
            router=router.advice(job.quality),
            rehearsed=rehearsed,
            objection=objection,
            changes=changed,
            machine=machine(training_device(job.settings.device)),
            weights=Weights(job.teachers_weights, fingerprint(Path(student.folder))),
        )
        self._write(report, router, student)
        return report

    def _rehearsed(
        self, trials: Trials, used: list[Item], unseen: list[Item], timings: Timings, router: Router
    ) -> list[Rehearsed]:
        """Options, the most promising first, up to the one that does as it should: on questions that were used to make it,
        and then on others."""
        quality, found = self.job.quality, list[Rehearsed]()
        for option in options(timings, router.policies, self.job.quality):
            self._now_at("rehearsing")
            one = Rehearsed(option, trials.compared(f"rehearsed-{option.policy}", used, timings, option))
            if one.objection(quality) is None:
                self._now_at("checking")
                check = trials.compared(f"checked-{option.policy}", unseen, timings, option)
                one = Rehearsed(option, one.seen, check)
            found.append(one)
            if one.objection(quality) is None:
                break
        return found

    def _now_at(self, stage: str) -> None:
        self._progress(f"{_STAGES.index(stage) + 1}/{len(_STAGES)} {stage}", 0, 1)

    def _gathered(self, examples: Iterable[Example]) -> Gathered:
        found = gather(examples, self.job.rules)
        self._parts(found)  # raises where there are too few: then more traffic may come
        return found

    def _parts(self, gathered: Gathered) -> Parts:
        return split(gathered.examples, gathered.groups, distils=self.job.student is None)

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
            threads=job.settings.threads,
        )

    def _most(self, share: float, times: int, asked: Asked, between: tuple[int, int]) -> int:
        """How many questions are asked so often, in each repeat, within this share of the time."""
        least, most = between
        seconds = 60 * share * self.job.minutes
        fit = seconds / (asked.seconds * times * self.job.asking.repeats)
        return int(min(max(fit, least), most))

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
        self.job.output.chmod(0o700)  # a student may say what it has learnt
        if report.objection is None:
            # There may be keys in it.
            with private_file(self.job.output / SETTINGS) as file:
                file.write(with_changes(self.job.text, report.changes).encode())


def _objection(router: Router, rehearsed: list[Rehearsed], quality: float) -> str | None:
    """Why nothing is switched on; None: the last of `rehearsed` is."""
    reasons = [one.objection(quality) for one in rehearsed]
    if None in reasons:
        return None
    if not rehearsed:
        reasons = [
            "guessing, the student saves no time",
            f"no router keeps the promise {quality:g} and saves any",
        ]
    return "; ".join(filter(None, [*reasons, router.objection]))
