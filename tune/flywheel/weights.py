"""Whether what a turn was made with is what lies there now: a judge knows the answers of two models, and no others."""

from pathlib import Path

import msgspec

from ...config import Settings
from ...errors import ConfigError
from ...models.fingerprint import fingerprint
from ...models.location import resolve_model


class Weights(msgspec.Struct, frozen=True):
    """Fingerprints; of the teacher with the precision that it is served in."""

    teacher: str
    student: str


def teachers_weights(settings: Settings) -> str:
    """Reads every byte of them."""
    return fingerprint(resolve_model(settings.model), settings.quantize, settings.dtype)


def check_weights(weights: Weights | None, settings: Settings, student: Path) -> None:
    """Args:
    weights: of the turn; None where it was written by a version that did not note them.

    Raises ConfigError where they are others now, or not known to be the same.
    """
    again = "turn the flywheel again, with another --output."
    if weights is None:
        raise ConfigError(f"The turn does not say which weights it was made with; {again}", param="output")
    if not student.is_dir():
        raise ConfigError(
            f"The student is not in {student} any more; put it back, or {again}", param="output"
        )
    for whose, then, now in (
        (f"The model {settings.model!r}", weights.teacher, teachers_weights(settings)),
        (f"The student in {student}", weights.student, fingerprint(student)),
    ):
        if then != now:
            raise ConfigError(
                f"{whose} has other weights, or another precision, than the turn was made with: what was measured, and "
                f"promised, is not of these. Put them back, or {again}",
                param="output",
            )
