"""W8A8 matmul of experts on a CPU: each expert that has rows multiplies its own, as `int8_matmul` does.

A row's result is that of `int8_matmul` with its expert's weight, bit for bit, whatever the others compute.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..quantized_rows import quantize_rows
from ..routing import Routing
from .int8_matmul import Int8Weight, int8_matmul_quantized


@dataclass(slots=True)
class GroupedInt8Weight:
    """A weight matrix for each expert, all of one shape."""

    experts: list[Int8Weight]

    @classmethod
    def quantize(cls, weight: Tensor) -> "GroupedInt8Weight":
        """From float matrices [E, N, K].

        Raises ValueError when K is too large for exact int32 accumulation.
        """
        return cls([Int8Weight.quantize(own) for own in weight])

    def matmul(self, x: Tensor, routing: Routing, bias: Tensor | None = None) -> Tensor:
        """[T, K] float, bias [E, N] float32 -> [S, N] float32; within a routing T is S."""
        if self.experts[0].native is not None:
            return self._matmul_natively(routing.of_rows(x), routing, bias)
        quantized = quantize_rows(x)  # once, however many experts read it
        if routing.tokens is not None:
            quantized = quantized.of(routing.tokens)
        out = torch.empty(quantized.values.shape[0], self.experts[0].out_features)
        for expert, rows in routing.shares():
            own_bias = None if bias is None else bias[expert]
            out[rows] = int8_matmul_quantized(quantized.of(rows), self.experts[expert], own_bias)
        return out

    def _matmul_natively(self, x: Tensor, routing: Routing, bias: Tensor | None) -> Tensor:
        """[S, K] -> [S, N]"""
        out = torch.empty(x.shape[0], self.experts[0].out_features)
        for expert, rows in routing.shares():
            out[rows] = self.experts[expert].matmul(x[rows], None if bias is None else bias[expert])
        return out
