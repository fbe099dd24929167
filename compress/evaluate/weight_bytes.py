"""What a served model's weights take in memory, in the forms that its kernels read; neither working memory nor KV."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.cpu.native.library import PackedWeight
from ...models.quantized_linear import SharedLinear


def weight_bytes(module: nn.Module) -> int:
    """Of every parameter, every buffer and every part of a quantized weight; what several share counts once."""
    found = {_place(tensor): tensor.numel() * tensor.element_size() for tensor in _of_module(module)}
    return sum(found.values())


def _of_module(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        yield from part.parameters(recurse=False)
        yield from part.buffers(recurse=False)
        for held in vars(part).values():
            if not isinstance(held, Tensor | nn.Module):  # a tensor that is neither is working memory
                yield from _of_value(held)


def _of_value(value: Any) -> Iterator[Tensor]:
    """Of weights, and of what layers computed as a whole keep theirs in; of nothing else (caches, calls)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from _of_module(value)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _of_value(inside)
    elif isinstance(value, SharedLinear):
        yield from _of_module(value.linear)
    elif isinstance(value, PackedWeight):
        yield from _of_value([value._packed, value._scale])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _of_value(getattr(value, field.name))


def _place(tensor: Tensor) -> int:
    """oneDNN's blocked tensors have no address."""
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)
