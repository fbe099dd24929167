"""The final hidden states of a model's rows: what its vocabulary is multiplied by, all that it has made of what it read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def kept_states(module: Any) -> Iterator[list[Tensor]]:
    """Those of each pass inside, [1, T, H], of a transformers model that gives any; see `final_state_size`."""
    kept: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        states = getattr(output, "last_hidden_state", None)
        if isinstance(states, Tensor):
            kept.append(states)

    hook = module.base_model.register_forward_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()


@torch.inference_mode()
def final_state_size(module: Any, compute: Callable[[], object]) -> int:
    """H, seen in a pass by `compute`; 0 where the model's own code keeps its states to itself."""
    with kept_states(module) as kept:
        compute()
    return kept[0].shape[-1] if len(kept) == 1 and kept[0].dim() == 3 else 0
