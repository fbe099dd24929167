"""Which columns of a linear layer matter least, and what the others must be for its output to stay as near as it can.

Both go by the second moments of its inputs, H = E[x x^T]: the error of weights V in place of W is tr((V - W) H (V - W)^T).
The fit of what stays is least squares, as in Optimal Brain Surgeon (Hassibi and Stork 1992) and SparseGPT (Frantar and
Alistarh 2023).
"""

import torch
from torch import Tensor

from .cut import group_columns
from .structure import Structure

# Added to the diagonal, of its mean: inputs that were hardly seen do not blow up.
DAMPING = 1e-4


def channels_by_importance(moments: Tensor, weight: Tensor) -> Tensor:
    """All columns [K], most important first.

    The error of losing one, the others fitted, is |w_j|^2 / [H^-1]_jj (Hassibi and Stork 1992).

    Args:
        moments: [K, K]; weight: [N, K].
    """
    inverse = torch.linalg.inv(_damped(moments))
    losses: Tensor = weight.double().square().sum(0) / inverse.diagonal()
    return losses.argsort(descending=True, stable=True)


def best_groups(moments: Tensor, weight: Tensor, count: int, structure: Structure) -> Tensor:
    """The `count` key-value groups that stay, ascending: one after another goes whose columns the rest makes up for best."""
    groups = torch.arange(structure.size.groups, device=weight.device)
    while len(groups) > count:
        left = [groups[groups != group] for group in groups]
        losses = [fit(moments, weight, group_columns(kept, structure))[1] for kept in left]
        groups = left[losses.index(min(losses))]
    return groups


def fit(moments: Tensor, weight: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """The weights [N, len(kept)] of the columns that stay, and the share of the output's squared length that is lost."""
    wide = weight.double()
    damped = _damped(moments)
    inner, cross = damped[kept][:, kept], damped[kept]
    fitted = torch.linalg.solve(inner, cross @ wide.t()).t()
    whole = (wide @ damped * wide).sum().clamp_min(1e-30)
    return fitted.to(weight.dtype), float(1 - (fitted * (wide @ cross.t())).sum() / whole)


def _damped(moments: Tensor) -> Tensor:
    wide = moments.double()
    mean = wide.diagonal().mean().clamp_min(1e-30)
    return wide + DAMPING * mean * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
