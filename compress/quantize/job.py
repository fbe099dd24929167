"""What `penstock quantize` is asked for, and what comes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..evaluate import Comparison
from ..evaluate.speed import Speed
from ..quantized_tensor import Scheme
from .layer import LayerRecord
from .sensitivity import Cost


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """Attributes:
    model: "builtin", a folder or a hub id.
    scheme: of all layers, or "auto": layer by layer, as few bytes as `most_kl` allows.
    group: columns that share a scale in 4 bits, at most.
    kv: whether keys and values are to be stored in INT8 when the model is served.
    source: where the texts come from, for the report.
    cache: where the texts are a cache's, which has others the next day: which cache's, and whose. The job goes on with those
        that it began with. None: they are the same whenever they are read.
    context: tokens read of each text.
    most_kl, least_agreement: what the result is held to, on texts it was not calibrated on.
    device: what the result is served on to be judged; it is made on the CPU.
    force: whether a result that fails is written all the same, and may take the place of a folder.
    """

    model: str
    output: Path
    scheme: Scheme | Literal["auto"]
    source: str
    group: int = 32
    kv: bool = False
    context: int = 512
    most_kl: float = 0.05
    least_agreement: float = 0.95
    device: str = "auto"
    force: bool = False
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Attributes:
    comparison: with the model as it is, on the texts held back, as it will be served.
    records: of every layer; costs: of every group of layers alone, where they were measured.
    bytes, stored_bytes: of the weights' files, and of the model's own.
    tokens, texts: calibrated on, and judged by.
    speed: by "as stored" and "quantized", where it was measured.
    """

    comparison: Comparison
    records: Sequence[LayerRecord]
    costs: Sequence[Cost]
    bytes: int
    stored_bytes: int
    tokens: int
    texts: int
    speed: Mapping[str, Sequence[Speed]] = field(default_factory=dict)
