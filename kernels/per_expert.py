"""Experts in a precision that has no grouped kernel: each multiplies its own rows, one after the other."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .routing import Routing


class Matrix(Protocol):
    """One expert's weight; see `dispatch.QuantizedWeight`."""

    @property
    def out_features(self) -> int: ...

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor: ...


@dataclass(slots=True)
class PerExpertWeight:
    """A weight matrix for each expert, all of one shape. A GPU is waited for, to learn who has how many rows."""

    experts: list[Matrix]

    def matmul(self, x: Tensor, routing: Routing, bias: Tensor | None = None) -> Tensor:
        """[T, K] float, bias [E, N] float32 -> [S, N] in the dtype that a matrix gives; within a routing T is S."""
        x = routing.of_rows(x)
        parts = [
            self.experts[expert].matmul(x[rows], None if bias is None else bias[expert])
            for expert, rows in routing.shares()
        ]
        return torch.cat(parts) if parts else x.new_empty(0, self.experts[0].out_features)
