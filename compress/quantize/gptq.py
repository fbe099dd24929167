"""GPTQ: rounds a matrix column by column, each column's error made up for by those not yet rounded.

After Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (ICLR 2023).
Columns are taken in the order of how much they weigh, but scales belong to groups of neighbours, chosen before: what is
stored is as plain as after rounding to nearest. The first columns could not know of the errors of the last: afterwards each
is rounded again, given all the others, as in Behdin et al., "QuantEase" (2023).
"""

import torch
from torch import Tensor

from .precision import Precision
from .rounding import Grid, grid_of

# Share of the mean curvature added to every column's, so that columns hardly seen do not blow up.
DAMPING = 0.01
# Columns whose errors reach the rest of the matrix in one product.
BLOCK = 128
# How often columns are rounded again.
SWEEPS = 2


def gptq(weight: Tensor, hessian: Tensor, precision: Precision) -> tuple[Tensor, Grid] | None:
    """[N, K] float32, and the sum of x x^T over inputs x, [K, K] -> [N, K] multiples as float32, and what they are of.

    None where the Hessian, damped as it is, is not positive definite in float64.
    """
    diagonal = hessian.diagonal()
    damping = DAMPING * diagonal.mean().clamp_min(1e-30)
    grid = grid_of(weight, precision, diagonal + damping)
    order = diagonal.argsort(descending=True, stable=True)
    damped = hessian[order][:, order]
    damped.diagonal().add_(damping)
    factor = _inverse_factor(damped)
    if factor is None:
        return None
    # Transposed: a column of the matrix is one stretch of memory.
    groups = order // (precision.group or weight.shape[1])
    scales, lowest, highest = (own.t()[groups] for own in (grid.scales, grid.lowest, grid.highest))
    columns = weight.t()[order]
    rest = columns.clone()
    multiples = torch.empty_like(rest)
    for start in range(0, len(rest), BLOCK):
        stop = min(start + BLOCK, len(rest))
        errors = torch.empty(stop - start, rest.shape[1])
        for column in range(start, stop):
            own, scale, multiple = rest[column], scales[column], multiples[column]
            torch.div(own, scale, out=multiple).round_().clamp_(lowest[column], highest[column])
            error = torch.addcmul(own, multiple, scale, value=-1).div_(factor[column, column])
            rest[column:stop].addr_(factor[column, column:stop], error, alpha=-1)
            errors[column - start] = error
        rest[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    del rest, factor
    for _ in range(SWEEPS):
        _round_again(columns.addcmul(multiples, scales, value=-1), damped, multiples, scales, lowest, highest)
    return multiples[order.argsort()].t().contiguous(), grid


def _round_again(
    error: Tensor, hessian: Tensor, multiples: Tensor, scales: Tensor, lowest: Tensor, highest: Tensor
) -> None:
    """One column after the other to the multiple that leaves the least error beside the others as they are now.

    All [K, N], but the Hessian [K, K]; `error`, what is left, and `multiples` are changed.
    """
    for start in range(0, len(error), BLOCK):
        block = slice(start, min(start + BLOCK, len(error)))
        own = hessian[block, block]
        pull = hessian[block] @ error
        for column in range(len(own)):
            at = start + column
            moved = (pull[column] / (own[column, column] * scales[at])).add_(multiples[at]).round_()
            moved.clamp_(lowest[at], highest[at])
            change = (moved - multiples[at]).mul_(scales[at])
            pull.addr_(own[:, column], change, alpha=-1)
            multiples[at] = moved
            error[at] -= change


def made_up(weight: Tensor, hessian: Tensor, drift: Tensor) -> Tensor:
    """The matrix [N, K] that makes of inputs x, as nearly as can be, what `weight` makes of the right ones, r.

    `hessian`, `drift`: the sums of x x^T and of (r - x) x^T. `weight` itself where the Hessian, damped, is not positive
    definite.
    """
    damped = hessian.double()
    damped.diagonal().add_(DAMPING * hessian.diagonal().mean().clamp_min(1e-30))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        return weight
    return weight + torch.cholesky_solve((weight @ drift).t().double(), lower).t().float()


def _inverse_factor(hessian: Tensor) -> Tensor | None:
    """The upper triangular U with U^T U the inverse. No more than two matrices of float64 are held at a time."""
    lower, failed = torch.linalg.cholesky_ex(hessian.double())
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    return None if failed else upper.float()
