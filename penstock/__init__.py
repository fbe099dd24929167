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

# Here, because OpenMP reads it once, when torch loads: let threads spin at a barrier for some 30 us, then sleep. GNU OpenMP
# spins without end, and a parallel region then costs 8 ms instead of 30 us as soon as another busy process shares the
# cores; sleeping at once (OMP_WAIT_POLICY=PASSIVE) costs a third of the speed on an idle machine (bench/LOG.md). Who
# imports torch first, or sets a variable of his own, decides for himself.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

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
