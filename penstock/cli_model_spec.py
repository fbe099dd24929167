"""A model and its precision in one word of a command line: `builtin:w8a8`, `path:w4a16+kv8`. Loads nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from .scheduler.engine_config import KVCacheDtype, Precision

WEIGHTS = ("none", "float32", "w8a8", "w8a16", "w4a16")
_KV = "kv8"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Attributes:
    text: as it was written.
    model, quantize, dtype, kv_cache_dtype: as `EngineConfig` takes them.
    """

    text: str
    model: str
    quantize: "Precision" = "auto"
    dtype: str = "auto"
    kv_cache_dtype: "KVCacheDtype" = "auto"


def model_spec(text: str) -> ModelSpec:
    """Without a precision a model is as `penstock serve` would serve it; "float32" is as stored, computed in that.

    Raises ConfigError for an unknown precision.
    """
    model, colon, precision = text.rpartition(":")
    if not colon or Path(text).exists():
        return ModelSpec(text, text)
    kv = precision == _KV or precision.endswith(f"+{_KV}")
    weights = "auto" if precision == _KV else precision.removesuffix(f"+{_KV}")
    if not model or (weights not in WEIGHTS and precision != _KV):
        raise ConfigError(
            f"{text!r} asks for the precision {precision!r}; it must be one of {', '.join(WEIGHTS)}, or {_KV}, or both as "
            f"in w8a8+{_KV}.",
            param="models",
        )
    quantize, dtype = ("none", weights) if weights == "float32" else (weights, "auto")
    return ModelSpec(text, model, quantize, dtype, "int8" if kv else "auto")  # type: ignore[arg-type]  # checked above
