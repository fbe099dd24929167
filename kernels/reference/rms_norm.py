"""Root-mean-square normalization in float64; for tests."""

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x [M, K] / sqrt(mean(x^2) + eps) * (weight [K] + offset) -> [M, K] float64."""
    x = x.double()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * (weight.double() + offset)
