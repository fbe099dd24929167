"""The servers that a turn asks: the model as it is served, the student, and both together, each with its settings.

Every answer and every timing is kept, and not taken again.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..router.collect import Progress, Tier
from ..router.scoring import SAME
from ..router.workload import Item
from .asking import Asked, ask_both
from .check import Checked, checked
from .gain import GUESSED, GUESSED_DRAFTED, LARGE, LARGE_DRAFTED, SMALL, Option, Timings
from .job import FlywheelJob
from .settings import InService, Names, Routed, alone, changes, measured, student_of
from .stages import Stages
from .student import Student
from .timing import Candidate, Drafted, served, timed

ROUTER = "router.json"


class Trials:
    """Args:
    student: where it lies now.
    folder: where the router file lies.
    """

    def __init__(
        self,
        job: FlywheelJob,
        names: Names,
        student: Student,
        folder: Path,
        stages: Stages,
        progress: Progress,
    ) -> None:
        self._job, self._names, self._student = job, names, student
        self._folder, self._stages, self._progress = folder, stages, progress

    def ask(self, items: Sequence[Item], file: Path, *, seconds: float) -> Asked:
        """Both models, for so long; the answers are kept in `file`."""
        job, names = self._job, self._names
        with ExitStack() as stack:
            large = Tier(stack.enter_context(served(alone(job.present))), names.asked)
            small = Tier(stack.enter_context(served(self._small)), names.small)
            return ask_both(
                (small, large),
                items,
                file,
                seconds=seconds,
                max_tokens=job.asking.max_tokens,
                concurrency=job.asking.concurrency,
                progress=self._progress,
            )

    def timings(self, questions: Sequence[tuple[Item, str]]) -> Timings:
        """`questions`: with the student's answers."""
        job, names = self._job, self._names
        large = alone(job.present)
        plain = [item for item, _ in questions]
        # A text that is gone on from has no predicted output.
        drafted = [Drafted(item, text) if item.asked.messages else item for item, text in questions]
        candidates = {
            LARGE: Candidate(large, names.asked, plain),
            SMALL: Candidate(self._small, names.small, plain),
            LARGE_DRAFTED: Candidate(large, names.asked, drafted),
        }
        if job.settings.speculation != "off":
            guessing = InService(Path(self._student.folder), job.quantize, None, drafts=True)
            guessed = {**large, **changes(guessing, names, job.settings)}
            candidates[GUESSED] = Candidate(guessed, names.asked, plain)
            candidates[GUESSED_DRAFTED] = Candidate(guessed, names.asked, drafted)
        return Timings.of(timed(candidates, job.asking, self._stages, self._progress))

    def compared(self, name: str, items: Sequence[Item], timings: Timings, option: Option) -> Checked:
        """The settings as they are beside those with the option; kept under `name`."""
        job, asked = self._job, self._names.asked
        changed = changed_settings(job, self._names, self._student, self._folder, timings, option)
        now, new = f"{name}-now", f"{name}-new"
        candidates = {
            now: Candidate(measured(job.present), asked, items),
            new: Candidate(measured(job.present, changed), asked, items),
        }
        runs = timed(candidates, job.asking, self._stages, self._progress)
        return checked(runs[now], runs[new], self._names.small, SAME[job.score])

    @property
    def _small(self) -> Mapping[str, Any]:
        own = student_of(Path(self._student.folder), self._job.quantize, self._job.settings)
        return measured({**own, "served_model_name": self._names.small})


def changed_settings(
    job: FlywheelJob, names: Names, student: Student, folder: Path, timings: Timings, option: Option
) -> dict[str, Any]:
    """What is to be laid over the settings. `folder`: where the router file lies."""
    route = None
    if option.policy != "drafts":
        # What a shadow looks at is agreement: commands that do the same in other words would count as losses.
        shadowed = job.score == "agreement"
        route = Routed(option.policy, folder.resolve() / ROUTER, job.quality, shadowed)
    service = InService(Path(student.folder), job.quantize, route, drafts=timings.guesses)
    return changes(service, names, job.settings)
