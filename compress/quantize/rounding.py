"""Rounds a matrix to integers by symmetric scales, chosen channel by channel or group by group.

Scales are bf16 numbers: every kernel and every reader of the file then multiplies with exactly those that the integers
were rounded by.
"""

import torch
from torch import Tensor

from .precision import Precision

# Of the largest magnitude: smaller scales round most weights finer, and clip the few largest.
CLIPS = tuple(1 - step / 20 for step in range(10))


def scales_of(weight: Tensor, precision: Precision, importance: Tensor | None = None) -> Tensor:
    """[N, K] float32 -> [N, G] scales.

    By the largest magnitude; with `importance` [K], what an error in each column weighs, by the least error of CLIPS.
    """
    parts = weight.view(weight.shape[0], -1, precision.group or weight.shape[1])
    largest = parts.abs().amax(dim=2).clamp_min_(1e-30)
    if importance is None:
        return (largest / precision.most).bfloat16().float()
    weighs = importance.view(1, -1, parts.shape[2])
    best = torch.full_like(largest, torch.inf)
    scales = torch.empty_like(largest)
    for clip in CLIPS:
        candidate = (largest * (clip / precision.most)).bfloat16().float()
        error = (_integers(parts, candidate, precision) * candidate[..., None] - parts).square_()
        error = (error * weighs).sum(dim=2)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, candidate, scales)
    return scales


def round_to_nearest(weight: Tensor, scales: Tensor, precision: Precision) -> Tensor:
    """[N, K] float32 by [N, G] scales -> [N, K] integers as float32."""
    return _integers(weight.view(*scales.shape, -1), scales, precision).view_as(weight)


def rounded(weight: Tensor, precision: Precision) -> Tensor:
    """[N, K] float32 -> what rounding to nearest makes of it, as floats again."""
    scales = scales_of(weight, precision)
    return dequantized(round_to_nearest(weight, scales, precision), scales)


def dequantized(integers: Tensor, scales: Tensor) -> Tensor:
    """[N, K] by [N, G] -> [N, K] float32."""
    return (integers.view(*scales.shape, -1) * scales[..., None]).view_as(integers)


def round_activation(x: Tensor) -> Tensor:
    """What the W8A8 kernels make of [..., K]: 8 bits by the largest magnitude of each token, as floats again."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127
    return torch.div(x, scale).round_() * scale


def _integers(parts: Tensor, scales: Tensor, precision: Precision) -> Tensor:
    """[N, G, K / G] by [N, G]"""
    return torch.div(parts, scales[..., None]).round_().clamp_(-precision.most - 1, precision.most)
