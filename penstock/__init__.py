"""Penstock: an LLM proxy with its own continuous-batching engine and completion cache.

    from penstock import AsyncEngine, CompletionCache, Engine, EngineConfig, SamplingParams

Names are resolved on first use: importing the package loads neither torch nor LMDB.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import CompletionCache
    from .errors import (
        AuthenticationError,
        ConfigError,
        ContextLengthError,
        EngineDeadError,
        InvalidRequestError,
        ModelLoadError,
        ModelNotFoundError,
        OverloadedError,
        PenstockError,
        UnsupportedParameterError,
    )
    from .scheduler import AsyncEngine, Engine, EngineConfig, SamplingParams

__version__ = "0.1.0"

# Here, because OpenMP reads it once, when torch loads: let threads sleep at a barrier instead of spinning for long. With
# spinning, a parallel region costs 8 ms instead of 30 us as soon as another busy process shares the cores (measured with
# GNU OpenMP on 2 cores). Who imports torch first, or sets the variable, decides for himself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOME = {
    "AsyncEngine": "scheduler",
    "Engine": "scheduler",
    "EngineConfig": "scheduler",
    "SamplingParams": "scheduler",
    "CompletionCache": "cache",
    "AuthenticationError": "errors",
    "ConfigError": "errors",
    "ContextLengthError": "errors",
    "EngineDeadError": "errors",
    "InvalidRequestError": "errors",
    "ModelLoadError": "errors",
    "ModelNotFoundError": "errors",
    "OverloadedError": "errors",
    "PenstockError": "errors",
    "UnsupportedParameterError": "errors",
}

__all__ = [
    "AsyncEngine",
    "AuthenticationError",
    "CompletionCache",
    "ConfigError",
    "ContextLengthError",
    "Engine",
    "EngineConfig",
    "EngineDeadError",
    "InvalidRequestError",
    "ModelLoadError",
    "ModelNotFoundError",
    "OverloadedError",
    "PenstockError",
    "SamplingParams",
    "UnsupportedParameterError",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
