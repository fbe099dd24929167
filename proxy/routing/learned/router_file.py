"""The file that `penstock tune router` writes and a route reads: what was learnt, and what was promised on it.

Knows its form, not what the numbers are used for.
"""

from pathlib import Path

import msgspec

from ....errors import ConfigError
from .features import EVIDENCE_FEATURES, QUESTION_FEATURES, Inputs

FORMAT = 1


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From which score on the small tier is good enough for a promise.

    Attributes:
        quality: the promise: of the questions that the large tier answers right, at least this share stays right.
        score: None where the promise cannot be kept but by always asking the large tier.
        share: of the questions it was set on, those that the small tier keeps.
        losses, questions: of so many questions that the large tier answered right, so many would be answered wrong.
    """

    quality: float
    score: float | None
    share: float
    losses: int
    questions: int


class Ruling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A score, linear in standardized features, what it means as a probability, and the thresholds set on it.

    Attributes:
        buffer_tokens: the tokens of an answer that are looked at; 0: all.
        means, scales, weights: of each input.
        scores, probabilities: what a score means: linear between these points, flat beyond the first and last.
    """

    buffer_tokens: int
    inputs: Inputs
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    offset: float
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    thresholds: tuple[Threshold, ...]


class RouterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Attributes:
    small, large: the tiers' names, as they are asked for.
    score: how answers were judged.
    delta: each promise holds with confidence 1 - delta.
    cascade: one ruling for each number of tokens that may be waited for.
    predictive: None where the question alone told too little.
    embedding_model: whose vectors the question needs, if it needs one.
    """

    format: int
    small: str
    large: str
    score: str
    delta: float
    cascade: tuple[Ruling, ...]
    predictive: Ruling | None = None
    embedding_model: str | None = None


def read_router_file(path: Path) -> RouterFile:
    """Raises ConfigError where there is none, it is of a newer form, or not what `penstock tune router` writes."""
    remedy = "Make one with `penstock tune router`."
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. {remedy}", param="router") from error
    try:
        form = msgspec.json.decode(data, type=_Form).format
        if form == FORMAT:
            found = msgspec.json.decode(data, type=RouterFile)
            _check(found)
            return found
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{path} is no router file: {error}. {remedy}", param="router") from error
    raise ConfigError(
        f"{path} is a router file of format {form}, and this version of Penstock reads format {FORMAT}. {remedy}",
        param="router",
    )


class _Form(msgspec.Struct):
    format: int


def _check(found: RouterFile) -> None:
    """Raises ValueError for what a judge would trip over."""
    for ruling in (*found.cascade, *([found.predictive] if found.predictive else [])):
        inputs = ruling.inputs
        if unknown := set(inputs.features) - {*EVIDENCE_FEATURES, *QUESTION_FEATURES}:
            raise ValueError(f"it looks at {min(unknown)!r}, which is not known here")
        if {len(ruling.means), len(ruling.scales), len(ruling.weights)} != {inputs.width}:
            raise ValueError(f"a ruling has {inputs.width} inputs, and not as many means, scales and weights")
        if min(ruling.scales, default=1.0) <= 0:
            raise ValueError("a scale is not above 0")
        if not ruling.scores or len(ruling.scores) != len(ruling.probabilities):
            raise ValueError("a ruling has not as many scores as probabilities")
        if list(ruling.scores) != sorted(ruling.scores):
            raise ValueError("the scores of a ruling do not rise")
        if not ruling.thresholds:
            raise ValueError("a ruling has no thresholds")
    if found.predictive is not None and found.predictive.inputs.wants_evidence:
        raise ValueError("the judge of questions looks at answers")
