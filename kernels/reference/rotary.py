"""Rotary position embedding in float64; for tests."""

import torch
from torch import Tensor


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [H, T, D], cos and sin [T, R], R <= D even: the first R channels, as pairs (i, i + R / 2), turned -> float64."""
    width = cos.shape[-1]
    turned, rest = x[..., :width].double(), x[..., width:].double()
    low, high = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos.double() + torch.cat([-high, low], -1) * sin.double(), rest], -1)
