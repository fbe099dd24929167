"""Where in a model there is something to cut, and what is refused because nothing here knows how.

The names are those that Llama gave its parts, and most models after it: blocks with gate_proj, up_proj and down_proj, and
with q_proj, k_proj, v_proj and o_proj. Parts are looked at for what they are, not by the model's name.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import CompressError
from ..plain_model import blocks

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class Size:
    """What of a model can be cut: how many layers, and in each of them.

    Attributes:
        channels: of the MLP; groups: key-value heads, each with the query heads that read it.
    """

    layers: int
    channels: int
    groups: int


@dataclass(frozen=True, slots=True)
class Structure:
    """Attributes:
    name: of the list of layers in the model.
    group_rows: rows of q_proj, and columns of o_proj, that belong to one key-value head; head_dim: rows of k_proj.
    """

    name: str
    size: Size
    head_dim: int
    group_rows: int


def structure_of(module: Any) -> Structure:
    """Raises CompressError naming the model, and what of it is built in another way."""
    name, layers = blocks(module)
    config = module.config.get_text_config()
    kind = type(module).__name__
    for index, layer in enumerate(layers):
        if any(hasattr(part, "experts") for part in layer.modules()):
            raise CompressError(
                f"{kind} has experts in its layers, and pruning knows dense models only; distil it into one instead "
                "(penstock distill)."
            )
        for owner, wanted in ((mlp_of(layer), MLP), (attention_of(layer), ATTENTION)):
            if missing := [part for part in wanted if not isinstance(getattr(owner, part, None), nn.Linear)]:
                raise CompressError(
                    f"{kind} cannot be pruned: layer {index} has no linear layer {missing[0]}. Pruning knows blocks of "
                    f"{', '.join(MLP)} and {', '.join(ATTENTION)}, as Llama, Qwen, Mistral and Gemma have them."
                )
    attention = attention_of(layers[0])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = Size(len(layers), config.intermediate_size, groups)
    structure = Structure(name, size, head_dim, attention.q_proj.out_features // groups)
    for index, layer in enumerate(layers):
        _check_shapes(kind, index, layer, structure)
    return structure


def mlp_of(layer: nn.Module) -> Any:
    return getattr(layer, "mlp", None)


def attention_of(layer: nn.Module) -> Any:
    return getattr(layer, "self_attn", None)


def _check_shapes(kind: str, index: int, layer: nn.Module, structure: Structure) -> None:
    mlp, attention, size = mlp_of(layer), attention_of(layer), structure.size
    kv_rows = size.groups * structure.head_dim
    heads_rows = size.groups * structure.group_rows
    found = (
        mlp.gate_proj.out_features,
        mlp.up_proj.out_features,
        mlp.down_proj.in_features,
        attention.q_proj.out_features,
        attention.k_proj.out_features,
        attention.v_proj.out_features,
        attention.o_proj.in_features,
    )
    expected = (size.channels,) * 3 + (heads_rows, kv_rows, kv_rows, heads_rows)
    if found != expected:
        raise CompressError(
            f"{kind} cannot be pruned: the widths of layer {index} are not those of its config (found {found}, expected "
            f"{expected}); all layers must be alike."
        )
    for name, parameter in attention.named_parameters():
        if name.split(".")[0] not in ATTENTION and parameter.shape[-1] in {heads_rows, kv_rows} - {
            structure.head_dim
        }:
            raise CompressError(
                f"{kind} cannot be pruned: {name} of its attention goes over all heads at once, so that heads cannot be "
                "taken out without changing the others."
            )
