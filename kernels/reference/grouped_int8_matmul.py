"""The INT8 products of experts by int64 arithmetic; for tests."""

import torch
from torch import Tensor

from .int8_matmul import int8_matmul_reference


def grouped_int8_matmul_reference(
    quantized: Tensor,
    act_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor,
    tokens: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """quantized [T, K] int8, act_scale [T, 1], weight [E, N, K] int8, weight_scale [E, N], offsets [E + 1],
    tokens [S] or None, bias [E, N] -> [S, N] float32."""
    if tokens is not None:
        quantized, act_scale = quantized[tokens.long()], act_scale[tokens.long()]
    bounds = offsets.tolist()
    parts = []
    for expert, start in enumerate(bounds[:-1]):
        rows = slice(start, bounds[expert + 1])
        own_bias = None if bias is None else bias[expert]
        parts.append(
            int8_matmul_reference(
                quantized[rows], act_scale[rows], weight[expert], weight_scale[expert], own_bias
            )
        )
    return torch.cat(parts)
