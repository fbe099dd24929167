"""What `penstock flywheel` is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...config import Settings
from .pii import Rule
from .timing import Asking


@dataclass(frozen=True, slots=True)
class FlywheelJob:
    """Attributes:
    identity: what makes it the same job as an interrupted one.
    teachers_weights: their fingerprint.
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
    teachers_weights: str
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
