"""Cuts layers, MLP channels and key-value groups out of a model: what is left is an ordinary, smaller one.

Knows what goes, not why.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .structure import Structure, attention_of, mlp_of


@dataclass(slots=True)
class Kept:
    """What one layer keeps.

    Attributes:
        channels: of its MLP, ascending; groups: its key-value heads, ascending.
        down, o: weights of down_proj and o_proj that make up for what goes, [hidden, kept columns]; None: as they were.
    """

    channels: Tensor
    groups: Tensor
    down: Tensor | None = None
    o: Tensor | None = None


def cut(module: Any, structure: Structure, kept: Sequence[tuple[int, Kept]]) -> Any:
    """A smaller copy of `module`, which shares with it the weights that stay whole: to look at and to save, not to train.

    Args:
        kept: the layers that stay, by their number, in order, and what of each. All keep as many channels and groups.
    """
    small = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    owner, _, attribute = structure.name.rpartition(".")
    layers: Any = small.get_submodule(structure.name)
    setattr(small.get_submodule(owner), attribute, nn.ModuleList([layers[index] for index, _ in kept]))
    for (_, own), layer in zip(kept, small.get_submodule(structure.name), strict=True):
        _cut_layer(layer, structure, own)
    _number(small.get_submodule(structure.name))
    _set_config(small.config.get_text_config(), structure, kept)
    return small


def _cut_layer(layer: nn.Module, structure: Structure, kept: Kept) -> None:
    mlp, attention = mlp_of(layer), attention_of(layer)
    if len(kept.channels) < structure.size.channels:
        for name in ("gate_proj", "up_proj"):
            _keep_rows(getattr(mlp, name), kept.channels)
        _keep_columns(mlp.down_proj, kept.channels, kept.down)
        _tell(mlp, "intermediate_size", len(kept.channels))
    if len(kept.groups) < structure.size.groups:
        heads = group_columns(kept.groups, structure)
        _keep_rows(attention.q_proj, heads)
        _keep_columns(attention.o_proj, heads, kept.o)
        for name in ("k_proj", "v_proj"):
            _keep_rows(getattr(attention, name), _places(kept.groups, structure.head_dim))
        query_heads = len(heads) // structure.head_dim
        for name, count in (
            ("num_heads", query_heads),
            ("num_attention_heads", query_heads),
            ("num_key_value_heads", len(kept.groups)),
        ):
            _tell(attention, name, count)


def group_columns(groups: Tensor, structure: Structure) -> Tensor:
    """Of o_proj, those that these key-value groups write."""
    return _places(groups, structure.group_rows)


def _places(groups: Tensor, width: int) -> Tensor:
    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()


def _keep_rows(linear: nn.Linear, rows: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.data[rows])
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.data[rows])
    linear.out_features = len(rows)


def _keep_columns(linear: nn.Linear, columns: Tensor, weight: Tensor | None) -> None:
    linear.weight = nn.Parameter(
        linear.weight.data[:, columns] if weight is None else weight.to(linear.weight.dtype)
    )
    linear.in_features = len(columns)


def _tell(part: nn.Module, attribute: str, value: int) -> None:
    """Some models keep the sizes of their config in their parts too."""
    if hasattr(part, attribute):
        setattr(part, attribute, value)


def _number(layers: nn.Module) -> None:
    """Caches find a layer's keys and values by its number."""
    for place, layer in enumerate(layers.children()):
        for part in layer.modules():
            _tell(part, "layer_idx", place)


def _set_config(config: Any, structure: Structure, kept: Sequence[tuple[int, Kept]]) -> None:
    own = kept[0][1]
    config.intermediate_size = len(own.channels)
    config.head_dim = structure.head_dim  # by default it follows from the number of heads
    config.num_attention_heads = len(own.groups) * structure.group_rows // structure.head_dim
    config.num_key_value_heads = len(own.groups)
    depth = structure.size.layers
    for key, value in vars(config).items():
        # One entry a layer, kinds of attention for one; a list of as many end tokens is something else.
        if "layer" in key and isinstance(value, list) and len(value) == depth:
            setattr(config, key, [value[index] for index, _ in kept])
    config.num_hidden_layers = len(kept)
