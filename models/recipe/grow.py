"""Makes a deeper model of a trained one, which computes the same at first: depth growing.

Layers, spread evenly, are followed by copies of themselves whose output projections (attention and feed-forward) are
zero. In a pre-norm residual layer they then add nothing, and get a gradient from the first step: their inner matrices
already compute features that fit at that depth, as they come from the neighbour. Muon's steps have the same size
whatever the gradient's, so zeros grow within some tens of steps. (Function-preserving growth: Net2Net,
arXiv:1511.05641; zero output projections as in LLaMA Pro, arXiv:2401.02415.)

Knows the names of Llama's parameters; nothing of training.
"""

import re

import torch

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
_OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def layers_in(state: dict[str, torch.Tensor]) -> int:
    """The number of layers of a Llama state dict."""
    return 1 + max(int(match[1]) for name in state if (match := _LAYER.match(name)))


def grow(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """A state dict of `layers` layers, in fp32, that computes what `state` computes.

    Raises:
        ValueError: `layers` is fewer than `state` has.
    """
    present = layers_in(state)
    if layers < present:
        raise ValueError(f"{present} layers cannot be grown to {layers}; use {present} or more")
    first = [i * layers // present for i in range(present + 1)]  # where each layer, then its copies, lie
    grown = {}
    for name, tensor in state.items():
        match = _LAYER.match(name)
        if not match:
            grown[name] = tensor.float().clone()
            continue
        original = int(match[1])
        for layer in range(first[original], first[original + 1]):
            silent = layer > first[original] and match[2] in _OUTPUTS
            new = torch.zeros_like(tensor, dtype=torch.float32) if silent else tensor.float().clone()
            grown[f"model.layers.{layer}.{match[2]}"] = new
    return grown
