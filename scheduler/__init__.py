"""The engine: sequences, blocks, scheduling, batches, sampling. Token ids only; no HTTP.

Names are resolved on first use, so that importing the package loads no torch.
"""

from typing import TYPE_CHECKING, Any

from .async_embedder import AsyncEmbedder, EmbedderProcess
from .async_engine import AsyncEngine
from .engine_config import EngineConfig
from .engine_process import EngineProcess
from .outputs import Chunk, Completion, EngineStats, GenerationResult, ModelInfo, TokenLogprob
from .sampling_params import SamplingParams
from .urgency import Urgency

if TYPE_CHECKING:
    from .engine import Engine

__all__ = [
    "AsyncEmbedder",
    "AsyncEngine",
    "Chunk",
    "Completion",
    "EmbedderProcess",
    "Engine",
    "EngineConfig",
    "EngineProcess",
    "EngineStats",
    "GenerationResult",
    "ModelInfo",
    "SamplingParams",
    "TokenLogprob",
    "Urgency",
]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from .engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
