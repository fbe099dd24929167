"""What `penstock distill` is asked for, and what comes of it."""

from dataclasses import dataclass, field
from pathlib import Path

from ..training.loop import TrainingReport, TrainingSettings
from .dataset import Dataset
from .measure import Measured
from .objective import DistillSettings


@dataclass(frozen=True, slots=True)
class DistillJob:
    """Attributes:
    teacher: "builtin", a folder or a hub id.
    student: as `teacher`; or layers: how many of the teacher's; or config: a config.json. One of them.
    data: where the examples come from, for the card.
    cache: where they are a cache's, which has others the next day: which cache's, and whose. The job goes on with those
        that it began with. None: they are the same whenever they are read.
    on_policy: share of the steps that the student learns by its own answers.
    """

    teacher: str
    output: Path
    data: str
    training: TrainingSettings
    student: str | None = None
    layers: int | None = None
    config: Path | None = None
    loss: DistillSettings = field(default_factory=DistillSettings)
    on_policy: float = 0.0
    max_tokens: int = 1024
    held_out_share: float = 0.05
    device: str = "auto"
    force: bool = False
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class Distilled:
    measured: Measured
    training: TrainingReport
    dataset: Dataset
