"""The INT8 products of experts by int64 arithmetic; for tests."""

import torch
from torch import Tensor

from ..quantized_rows import QuantizedRows
from .int8_matmul import int8_matmul_reference


def grouped_int8_matmul_reference(
    x: QuantizedRows,
    weight: Tensor,
    weight_scale: Tensor,
    offsets: Tensor,
    tokens: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """x [T, K], weight [E, N, K] int8, weight_scale [E, N], offsets [E + 1], tokens [S] or None, bias [E, N] -> [S, N]."""
    if tokens is not None:
        x = x.of(tokens.long())
    bounds = offsets.tolist()
    parts = []
    for expert, start in enumerate(bounds[:-1]):
        rows = slice(start, bounds[expert + 1])
        own_bias = None if bias is None else bias[expert]
        parts.append(int8_matmul_reference(x.of(rows), weight[expert], weight_scale[expert], own_bias))
    return torch.cat(parts)
