"""A router file whose judge keeps what is answered to a question: to what holds a question mark."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from penstock.proxy.routing.learned.features import Inputs
from penstock.proxy.routing.learned.router_file import FORMAT, RouterFile, Ruling, Threshold

QUALITY = 0.9


def write_router(
    file: Path,
    small: str,
    large: str,
    *,
    buffers: Sequence[int] = (0,),
    predictive: bool = True,
    embedding_model: str | None = None,
) -> Path:
    picks = _ruling(("question_mark",)) if predictive else None
    cascade = tuple(_ruling(("question_mark", "mean_logprob"), buffer) for buffer in buffers)
    made = RouterFile(
        FORMAT, small, large, "agreement", 0.05, cascade, picks, embedding_model=embedding_model
    )
    file.write_bytes(msgspec.json.encode(made))
    return file


def _ruling(features: tuple[str, ...], buffer_tokens: int = 0) -> Ruling:
    """Log-probabilities are looked at, and decide nothing. A score of 1 or -1, which are probabilities of 0.75 and 0.25."""
    return Ruling(
        buffer_tokens=buffer_tokens,
        inputs=Inputs(features),
        means=(0.0,) * len(features),
        scales=(1.0,) * len(features),
        weights=(2.0, 0.0)[: len(features)],
        offset=-1.0,
        scores=(-2.0, 2.0),
        probabilities=(0.0, 1.0),
        thresholds=(Threshold(QUALITY, 0.0, 0.5, 1, 100), Threshold(0.99, None, 0.0, 0, 100)),
    )
