"""Whether two ways of computing a part of a model give the same, tried on random numbers when it loads."""

import torch
from torch import Tensor

from ..kernels.dispatch import Backend

# How far two ways of rounding the same sums may differ, as a share of the largest value.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def random_rows(*shape: int, like: Tensor | None, backend: Backend) -> Tensor:
    """Normal numbers of `shape` in the dtype of `like`, the same ones every time."""
    dtype = torch.get_default_dtype() if like is None or not like.is_floating_point() else like.dtype
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(backend.device, dtype)


def agree(mine: Tensor, theirs: Tensor) -> bool:
    """Whether both have one shape and dtype, and values that differ by no more than rounding; False for NaN."""
    if mine.shape != theirs.shape or mine.dtype is not theirs.dtype:
        return False
    limit = TOLERANCE[mine.dtype] * float(theirs.abs().max())
    return float((mine.float() - theirs.float()).abs().max()) <= limit
