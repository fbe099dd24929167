"""GPTQ: rounds a matrix column by column, each column's error made up for by those not yet rounded.

After Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (ICLR 2023).
Columns are taken in the order of how much they weigh, but scales belong to groups of neighbours, chosen before: what is
stored is as plain as after rounding to nearest.
"""

import torch
from torch import Tensor

from .precision import Precision
from .rounding import scales_of

# Share of the mean curvature added to every column's, so that columns hardly seen do not blow up.
DAMPING = 0.01
# Columns whose errors reach the rest of the matrix in one product.
BLOCK = 128


def gptq(weight: Tensor, hessian: Tensor, precision: Precision) -> tuple[Tensor, Tensor] | None:
    """[N, K] float32, and the sum of x x^T over inputs x, [K, K] -> ([N, K] integers as float32, [N, G] scales).

    None where the Hessian, damped as it is, is not positive definite in float64.
    """
    diagonal = hessian.diagonal()
    damping = DAMPING * diagonal.mean().clamp_min(1e-30)
    scales = scales_of(weight, precision, diagonal + damping)
    order = diagonal.argsort(descending=True, stable=True)
    damped = hessian[order][:, order]
    damped.diagonal().add_(damping)
    factor = _inverse_factor(damped)
    if factor is None:
        return None
    # Transposed: a column of the matrix is one stretch of memory.
    column_scales = scales.t()[order // (precision.group or weight.shape[1])].contiguous()
    rest = weight.t()[order]
    integers = torch.empty_like(rest)
    for start in range(0, len(rest), BLOCK):
        stop = min(start + BLOCK, len(rest))
        errors = torch.empty(stop - start, rest.shape[1])
        for column in range(start, stop):
            own, scale = rest[column], column_scales[column]
            torch.div(own, scale, out=integers[column]).round_().clamp_(-precision.most - 1, precision.most)
            error = torch.addcmul(own, integers[column], scale, value=-1).div_(factor[column, column])
            rest[column:stop].addr_(factor[column, column:stop], error, alpha=-1)
            errors[column - start] = error
        rest[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return integers[order.argsort()].t().contiguous(), scales


def _inverse_factor(hessian: Tensor) -> Tensor | None:
    """The upper triangular U with U^T U the inverse. No more than two matrices of float64 are held at a time."""
    lower, failed = torch.linalg.cholesky_ex(hessian.double())
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    return None if failed else upper.float()
