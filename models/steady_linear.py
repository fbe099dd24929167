"""The float linears that are left beside quantized ones: routers, the gates of shared experts. A row of theirs has to be the
same in any batch too, or a token's experts and their shares would depend on its company.

BLAS sums in an order that depends on how many rows and columns there are. So a CPU gets no fewer than MIN_ROWS rows a thread
and whole multiples of COLUMNS columns, from where on the order is one and the same (measured: rows equal bit for bit in
batches of 1 to 300, for 1 to 256 columns and sums of 31 to 7168 terms; not so below). A GPU gets TILE rows every time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .quantized_linear import routers

# For each thread, since threads share out the rows.
MIN_ROWS = 8
COLUMNS = 16
TILE = 256


def make_steady(model: nn.Module) -> int:
    """Have every module with a float matrix, but embeddings, compute its products by `steady_linear`; returns how many."""
    made = 0
    reaching = {
        id(router) for router in routers(model)
    }  # some multiply by the weight of a linear inside themselves
    for module in model.modules():
        matrices = (p for p in module.parameters(recurse=False) if p.dim() == 2 and p.is_floating_point())
        if not isinstance(module, nn.Embedding) and (id(module) in reaching or any(True for _ in matrices)):
            module.forward = partial(_steadily, module.forward)
            made += 1
    return made


def _steadily(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _Steady():
        return forward(*args, **kwargs)


class _Steady(TorchFunctionMode):
    """Computes `nn.functional.linear` by ours, wherever a model's own code calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            return steady_linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def steady_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T (+ b), [..., K] -> [..., N]: a row's bits depend on nothing but the row."""
    x, columns = input.reshape(-1, input.shape[-1]), weight.shape[0]
    if x.is_cuda:
        out = x.new_empty(x.shape[0], columns)
        for start in range(0, x.shape[0], TILE):
            rows = x[start : start + TILE]
            out[start : start + TILE] = nn.functional.linear(_padded(rows, TILE), weight, bias)[: len(rows)]
    else:
        wide = _padded(weight, -(-columns // COLUMNS) * COLUMNS)
        rows = _padded(x, max(2, torch.get_num_threads()) * MIN_ROWS)
        out = nn.functional.linear(rows, wide)[: x.shape[0], :columns]
        if bias is not None:
            out = out + bias
    return out.reshape(*input.shape[:-1], columns)


def _padded(x: Tensor, rows: int) -> Tensor:
    """`x` [M, K] with zeros behind, up to `rows`."""
    return x if x.shape[0] >= rows else nn.functional.pad(x, (0, 0, 0, rows - x.shape[0]))
