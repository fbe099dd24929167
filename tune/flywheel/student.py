"""The student: distilled from the teacher on what was asked, and what it is worth beside it."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...compress.distill.job import DistillJob
from ...compress.distill.objective import DistillSettings
from ...compress.distill.run import distill
from ...compress.machine import use_threads
from ...compress.texts import Example
from ...compress.training.loop import TrainingSettings
from ...compress.training.schedule import Budget
from ...errors import ConfigError
from ...models.json_file import read_json_object
from ...models.location import resolve_model


class Student(msgspec.Struct, frozen=True):
    """Attributes:
    folder: where it lies.
    steps, minutes: of training; 0 of one that was there already, of which nothing else is known.
    kl: from its teacher, nats per token; greedy: share of its tokens that stand as its teacher's drafts.
    """

    folder: str
    steps: int = 0
    minutes: float = 0.0
    kl: float | None = None
    greedy: float | None = None
    texts: int = 0


def half_the_layers(teacher: str) -> int:
    """Raises ConfigError where its configuration does not say how many there are."""
    config = read_json_object(resolve_model(teacher) / "config.json")
    depth = config.get("text_config", config).get("num_hidden_layers")
    if not isinstance(depth, int):
        raise ConfigError(
            f"{teacher} does not say how many layers it has; say how many the student gets with --layers.",
            param="layers",
        )
    return max(1, depth // 2)


def distilled(
    teacher: str,
    layers: int,
    examples: Sequence[Example],
    folder: Path,
    *,
    minutes: float,
    context: int,
    seed: int,
    device: str,
    threads: int | None,
) -> Student:
    """Goes on where it was interrupted. Raises PenstockError as `distill` does."""
    use_threads(threads)
    job = DistillJob(
        teacher=teacher,
        output=folder,
        data=f"{len(examples)} answers that a cache kept",
        training=TrainingSettings(Budget(minutes=minutes), seed=seed),
        # Of the losses tried on the built-in model, what begins from its own layers learnt most by this (docs/distill.md).
        loss=DistillSettings(hidden=1.0),
        layers=layers,
        max_tokens=context,
        device=device,
        force=True,  # one that was written, but not yet noted
    )
    done = distill(job, examples)
    measured, training = done.measured, done.training
    return Student(
        str(folder),
        training.steps,
        training.seconds / 60,
        measured.comparison.kl.value,
        measured.acceptance.greedy.value,
        measured.texts,
    )
