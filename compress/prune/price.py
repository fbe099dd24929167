"""What a model of some size costs, in parameters or in time: a sum over its parts. Knows numbers only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..plain_model import blocks
from .structure import Size, Structure, attention_of, mlp_of

WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Price:
    """`fixed + layers * (layer + channels * channel + groups * group)`, the last three of each layer."""

    fixed: float
    layer: float
    channel: float
    group: float

    def of(self, size: Size) -> float:
        return self.fixed + size.layers * (
            self.layer + size.channels * self.channel + size.groups * self.group
        )


def parameters_of(module: Any, structure: Structure) -> Price:
    """Of a transformers model; tied ones count once."""
    first = blocks(module)[1][0]
    mlp, attention, size = mlp_of(first), attention_of(first), structure.size
    in_channels = sum(p.numel() for p in mlp.parameters()) - _size_of_bias(mlp.down_proj)
    in_groups = sum(
        p.numel() for name in ("q_proj", "k_proj", "v_proj") for p in getattr(attention, name).parameters()
    )
    in_groups += attention.o_proj.weight.numel()
    in_layer = sum(p.numel() for p in first.parameters())
    return Price(
        fixed=sum(p.numel() for p in module.parameters()) - size.layers * in_layer,
        layer=in_layer - in_channels - in_groups,
        channel=in_channels / size.channels,
        group=in_groups / size.groups,
    )


def probes(whole: Size) -> dict[str, Size]:
    """Sizes to time, by which `price_of_time` tells apart what takes the time; the whole model first."""
    return {
        WHOLE: whole,
        "half its layers": replace(whole, layers=(whole.layers + 1) // 2),
        "half its channels": replace(whole, channels=(whole.channels + 1) // 2),
        "one key-value group": replace(whole, groups=1),
    }


def price_of_time(whole: Size, times: Mapping[str, float]) -> Price:
    """From the time that each of `probes` takes for a token, in any unit. What noise makes negative counts as nothing."""
    sizes = probes(whole)
    layers, channels, groups = (
        _slope(times[WHOLE] - times[name], saved)
        for name, saved in (
            ("half its layers", whole.layers - sizes["half its layers"].layers),
            ("half its channels", whole.layers * (whole.channels - sizes["half its channels"].channels)),
            ("one key-value group", whole.layers * (whole.groups - 1)),
        )
    )
    layer = max(0.0, layers - whole.channels * channels - whole.groups * groups)
    in_layers = whole.layers * (layer + whole.channels * channels + whole.groups * groups)
    return Price(max(0.0, times[WHOLE] - in_layers), layer, channels, groups)


def _slope(difference: float, saved: int) -> float:
    return max(0.0, difference / saved) if saved else 0.0


def _size_of_bias(linear: Any) -> int:
    return 0 if linear.bias is None else linear.bias.numel()
