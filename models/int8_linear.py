"""Replaces a loaded model's linear layers by INT8 ones, layer by layer, so that both copies never stand side by side."""

import torch
from torch import Tensor, nn

from ..kernels.int8_matmul import Int8Weight, int8_matmul, pack_weight, quantize_weight

# Routers pick experts by small differences between logits and cost next to nothing: they stay as stored.
ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate"})
# Both forms of a large weight are kept up to this many bytes in all: a faster single stream for memory that a small
# model does not miss.
KEEP_PLAIN_BYTES = 512 << 20


class Int8Linear(nn.Module):
    """y = x W^T (+ b) in W8A8; takes and gives float32, [..., K] -> [..., N]."""

    def __init__(self, weight: Int8Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight_int8 = weight
        self.bias = bias
        self.in_features = weight.in_features
        self.out_features = weight.out_features

    def forward(self, x: Tensor) -> Tensor:
        out = int8_matmul(x.reshape(-1, self.in_features), self.weight_int8, self.bias)
        return out.view(*x.shape[:-1], self.out_features)


def quantize_linears(model: nn.Module) -> int:
    """Swap every linear layer (`nn.Linear`, GPT-2's `Conv1D`) but routers; returns how many were swapped.

    What is left (norms, biases, routers) becomes float32; the embedding keeps its dtype and gives float32.
    """
    from transformers.pytorch_utils import Conv1D

    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[2] not in ROUTER_NAMES
    ]
    keep_plain = sum(module.weight.numel() for _, module in linears) <= KEEP_PLAIN_BYTES
    embedding = model.get_input_embeddings()
    for name, module in linears:
        parent_name, _, child_name = name.rpartition(".")
        weight = module.weight.detach()
        plain, scale = quantize_weight(weight.t() if isinstance(module, Conv1D) else weight)
        bias = None if module.bias is None else module.bias.detach().float()
        packed = pack_weight(plain, scale, keep_plain=keep_plain)
        setattr(model.get_submodule(parent_name), child_name, Int8Linear(packed, bias))
        del module, weight, plain
    for module in model.modules():
        if module is not embedding:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    embedding.register_forward_hook(_to_float32)
    return len(linears)


def _to_float32(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.float()
