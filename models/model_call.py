"""Makes every model callable in one way: rows of several sequences in one flat batch, told by their positions.

Some models count positions by themselves, or compute the logits of every row; here they are given the rest.
"""

import inspect
from typing import Any

from torch import Tensor, nn


def feed_positions(model: nn.Module) -> None:
    """Hand `position_ids` to the position embeddings of a model that would count rows in their place."""
    embeddings = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding) and "position_ids" in parameters_of(module)
    ]
    if "position_ids" in parameters_of(model) or not embeddings:
        return
    held: dict[str, Tensor] = {}

    def hold(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        held["position_ids"] = kwargs.pop("position_ids")[0]
        return args, kwargs

    def give(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | held

    model.register_forward_pre_hook(hold, with_kwargs=True)
    for module in embeddings:
        module.register_forward_pre_hook(give, with_kwargs=True)


def keep_logits(model: nn.Module) -> None:
    """Drop the logits of other rows than `logits_to_keep`, where the model itself does not."""
    if "logits_to_keep" in parameters_of(model):
        return
    held: dict[str, Tensor] = {}

    def hold(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        held["rows"] = kwargs.pop("logits_to_keep")
        return args, kwargs

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = output.logits[:, held["rows"]]
        return output

    model.register_forward_pre_hook(hold, with_kwargs=True)
    model.register_forward_hook(keep)


def parameters_of(module: nn.Module) -> Any:
    """Of its forward, by name."""
    return inspect.signature(module.forward).parameters
