"""Imports transformers without torch's compiler and its distributed tensors, which serving on one device never uses.

transformers applies a few of the compiler's decorators while it is imported; that alone loads torch._dynamo, inductor,
sympy and DTensor: a third of a cold start (measured: 3.4 against 5.1 s from spawn to first token, 2 cores). Here those
decorators do nothing, which is what they do anyway to code that is not being compiled.

Only for a process of our own, never for one that embeds us: its code may want the compiler.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from .import_structure import kept_import_structure

COMPILER = "torch._dynamo"
# What transformers imports from inside the compiler by name.
TRACE_HELPERS = f"{COMPILER}._trace_wrapped_higher_order_op"


@contextlib.contextmanager
def light_import() -> Iterator[None]:
    """While it lasts, transformers is imported without the compiler and without reading what it was read for before."""
    with without_compiler(), kept_import_structure():
        yield


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """While it lasts, the compiler is an inert stand-in and torch.distributed says that it is not available.

    Does nothing when the compiler is loaded already. Afterwards both are as before, ready to be imported for real.
    """
    if COMPILER in sys.modules:
        yield
        return
    import torch.distributed

    compiler, helpers = _Inert(COMPILER), _Inert(TRACE_HELPERS)
    compiler.__path__ = []
    helpers.__dict__["TransformGetItemToIndex"] = contextlib.nullcontext
    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    sys.modules.update({COMPILER: compiler, TRACE_HELPERS: helpers})
    try:
        yield
    finally:
        torch.distributed.is_available = is_available
        for name in (COMPILER, TRACE_HELPERS):
            sys.modules.pop(name, None)


class _Inert(ModuleType):
    """A module whose every function gives back what it decorates."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _identity


def _identity(function: Any = None, *_args: Any, **_kwargs: Any) -> Any:
    return (lambda decorated: decorated) if function is None else function
