"""Rounds a matrix to whole multiples of scales, chosen channel by channel or group by group.

Those around zero, as many below as above; or, with zero points, of each group its own, from its least weight to its largest,
zero among them, which matters where there are but sixteen.

Scales are bf16 numbers: every kernel and every reader of the file then multiplies with exactly those that the integers
were rounded by.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.quantized_rows import quantize_rows
from .precision import Precision

# Of the whole range: smaller scales round most weights finer, and clip the few largest.
CLIPS = tuple(1 - step / 20 for step in range(10))
# Of a scale with zero points. A zero point has three at most, so that the two multiplied are a bf16 number as well, which
# torch's product on CPUs takes in one pass instead of two.
SIGNIFICANT_BITS = 5


@dataclass(frozen=True, slots=True)
class Grid:
    """What the elements of each group can become: scale * m, with whole m from lowest to lowest + 2^bits - 1.

    Attributes:
        scales, lowest: [N, G] float32.
        steps: 2^bits - 1.
    """

    scales: Tensor
    lowest: Tensor
    steps: int

    @property
    def highest(self) -> Tensor:
        return self.lowest + self.steps

    def of(self, rows: slice) -> "Grid":
        return Grid(self.scales[rows], self.lowest[rows], self.steps)


def grid_of(weight: Tensor, precision: Precision, importance: Tensor | None = None) -> Grid:
    """For [N, K] float32.

    By the largest magnitude, or the least and the largest weight; with `importance` [K], what an error in each column
    weighs, by the least error of CLIPS.
    """
    parts = weight.view(weight.shape[0], -1, precision.group or weight.shape[1])
    grids = _with_zeros(parts, precision) if precision.has_zeros else _around_zero(parts, precision)
    grid = next(grids)
    if importance is None:
        return grid
    weighs = importance.view(1, -1, parts.shape[2])

    def error_of(tried: Grid) -> Tensor:
        rounded = _multiples(parts, tried).mul_(tried.scales[..., None])
        return rounded.sub_(parts).square_().mul_(weighs).sum(dim=2)

    least = error_of(grid)
    for tried in grids:
        error = error_of(tried)
        better = error < least
        least = torch.where(better, error, least)
        grid = Grid(
            torch.where(better, tried.scales, grid.scales),
            torch.where(better, tried.lowest, grid.lowest),
            grid.steps,
        )
    return grid


def _around_zero(parts: Tensor, precision: Precision) -> Iterator[Grid]:
    largest = parts.abs().amax(dim=2).clamp_min_(1e-30)
    lowest = torch.full_like(largest, -precision.most - 1)
    for clip in CLIPS:
        yield Grid((largest * (clip / precision.most)).bfloat16().float(), lowest, precision.steps)


def _with_zeros(parts: Tensor, precision: Precision) -> Iterator[Grid]:
    least, largest = parts.amin(dim=2).clamp_max_(0), parts.amax(dim=2).clamp_min_(0)
    span = (largest - least).clamp_min_(1e-30)
    for clip in CLIPS:
        scales = _of_few_bits(span * (clip / precision.steps))
        nearest = torch.div(least * clip, scales).round_()
        for shift in (0, -1, 1):
            yield Grid(scales, (nearest + shift).clamp_(-precision.steps, 0), precision.steps)


def _of_few_bits(scales: Tensor) -> Tensor:
    fraction, exponent = torch.frexp(scales)
    places = 1 << SIGNIFICANT_BITS
    return torch.ldexp((fraction * places).round_() / places, exponent)


def round_to_nearest(weight: Tensor, grid: Grid) -> Tensor:
    """[N, K] float32 -> [N, K] multiples as float32."""
    return _multiples(weight.view(*grid.scales.shape, -1), grid).view_as(weight)


def rounded(weight: Tensor, precision: Precision) -> Tensor:
    """[N, K] float32 -> what rounding to nearest makes of it, as floats again."""
    grid = grid_of(weight, precision)
    return dequantized(round_to_nearest(weight, grid), grid)


def dequantized(multiples: Tensor, grid: Grid) -> Tensor:
    """[N, K] -> [N, K] float32."""
    return (multiples.view(*grid.scales.shape, -1) * grid.scales[..., None]).view_as(multiples)


def round_activation(x: Tensor) -> Tensor:
    """What the W8A8 kernels make of [..., K], as floats again."""
    return quantize_rows(x.reshape(-1, x.shape[-1])).dequantized().view(x.shape)


def _multiples(parts: Tensor, grid: Grid) -> Tensor:
    """[N, G, K / G]"""
    found = torch.div(parts, grid.scales[..., None]).round_()
    return found.clamp_(grid.lowest[..., None], grid.highest[..., None])
