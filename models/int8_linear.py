"""Replaces a loaded model's linear layers by INT8 ones, layer by layer, so that both copies never stand side by side.

Linears that read the same input (q, k and v; gate and up) share one matrix: a third of the quantizations and calls.
"""

import gc

import torch
from torch import Tensor, nn

from ..kernels.int8_matmul import Int8Weight, int8_matmul, pack_weight, quantize_weight

# Routers pick experts by small differences between logits and cost next to nothing: they stay as stored.
ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate"})
# Siblings that transformers' models feed with one and the same tensor.
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Both forms of a large weight are kept up to this many weights in all: a faster single stream for memory that a small
# model does not miss.
KEEP_PLAIN_WEIGHTS = 64 << 20


class Int8Linear(nn.Module):
    """y = x W^T (+ b) in W8A8; takes and gives float32, [..., K] -> [..., N]."""

    def __init__(self, weight: Int8Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight_int8 = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        out = int8_matmul(x.reshape(-1, self.weight_int8.in_features), self.weight_int8, self.bias)
        return out.view(*x.shape[:-1], self.weight_int8.out_features)


class SharedInt8Linear:
    """Several linears of one input as one matrix. The first to be called computes for all; each takes its columns."""

    def __init__(self, weight: Int8Weight, bias: Tensor | None, sizes: list[int]) -> None:
        self._linear = Int8Linear(weight, bias)
        self._sizes = sizes
        self._input: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def take(self, index: int, x: Tensor) -> Tensor:
        # By identity: the held reference keeps the tensor's id from being given to another.
        if x is not self._input or self._parts[index] is None:
            self._input = x
            self._parts = list(self._linear(x).split(self._sizes, dim=-1))
        part = self._parts[index]
        assert part is not None
        self._parts[index] = None
        if not any(other is not None for other in self._parts):
            self._input = None
        return part


class Int8LinearPart(nn.Module):
    """One of the linears in a `SharedInt8Linear`."""

    def __init__(self, shared: SharedInt8Linear, index: int) -> None:
        super().__init__()
        self._shared = shared
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        return self._shared.take(self._index, x)


def quantize_linears(model: nn.Module) -> int:
    """Swap every linear layer (`nn.Linear`, GPT-2's `Conv1D`) but routers; returns how many were swapped.

    What is left (norms, biases, routers) becomes float32; the embedding keeps its dtype and gives float32.
    """
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D)
    keep_plain = sum(p.numel() for p in model.parameters()) <= KEEP_PLAIN_WEIGHTS
    embedding = model.get_input_embeddings()
    swapped = 0
    for parent in list(model.modules()):
        linears = {
            name: child
            for name, child in parent.named_children()
            if isinstance(child, kinds) and name not in ROUTER_NAMES
        }
        for names in SHARED_INPUTS:
            siblings = [linears[name] for name in names if name in linears]
            if len(siblings) == len(names) and all(isinstance(linear, nn.Linear) for linear in siblings):
                shared = _share(siblings, keep_plain)
                for index, name in enumerate(names):
                    setattr(parent, name, Int8LinearPart(shared, index))
                    del linears[name]
                swapped += len(names)
        for name, linear in linears.items():
            weight = linear.weight.t() if isinstance(linear, Conv1D) else linear.weight
            packed = pack_weight(*quantize_weight(weight.detach()), keep_plain=keep_plain)
            setattr(parent, name, Int8Linear(packed, _bias(linear)))
            swapped += 1
    for module in model.modules():
        if module is not embedding:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    embedding.register_forward_hook(_to_float32)
    gc.collect()  # transformers' modules hold reference cycles; the old weights go now
    return swapped


def _share(linears: list[nn.Module], keep_plain: bool) -> SharedInt8Linear:
    quantized = [quantize_weight(linear.weight.detach()) for linear in linears]  # type: ignore[arg-type]
    plain = torch.cat([weight for weight, _ in quantized])
    scale = torch.cat([scale for _, scale in quantized])
    sizes = [weight.shape[0] for weight, _ in quantized]
    biases = [_bias(linear) for linear in linears]
    bias = None
    if any(part is not None for part in biases):
        parts = zip(biases, sizes, strict=True)
        bias = torch.cat([torch.zeros(size) if part is None else part for part, size in parts])
    return SharedInt8Linear(pack_weight(plain, scale, keep_plain=keep_plain), bias, sizes)


def _bias(linear: nn.Module) -> Tensor | None:
    bias = linear.bias
    return bias.detach().float() if isinstance(bias, Tensor) else None


def _to_float32(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.float()
