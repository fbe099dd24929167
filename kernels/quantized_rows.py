"""Activations in eight bits: each row by its own scale, from its least value to its largest, zero among them.

    scale[m] = max((high[m] - low[m]) / 255, 1e-14)        low <= 0 <= high
    zero[m] = -128 - round_half_even(low[m] / scale[m])
    values[m, k] = min(round_half_even(x[m, k] / scale[m] + zero[m]), 127)

in float32 with IEEE division, as compressed-tensors rounds activations that are not symmetric. Every kernel makes the same
of a row, to the last bit. What lies to one side of zero for the most part is rounded up to twice as finely as it would be by
its largest magnitude. A row with NaN or infinity gets the scale NaN from kernels, so that it shows in the result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# From the least integer to the largest.
STEPS = 255
LEAST, MOST = -128, 127
SMALLEST_SCALE = 1e-14


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """x[m, k] is about (values[m, k] - zero[m]) * scale[m].

    Attributes:
        values: [M, K] int8, or wider, with anything where weights are padded by zeros.
        scale: [M, 1] float32; zero: [M, 1] float32, the integer that stands for 0.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor

    def of(self, rows: Tensor | slice | list[int]) -> "QuantizedRows":
        return QuantizedRows(self.values[rows], self.scale[rows], self.zero[rows])

    def dequantized(self) -> Tensor:
        """[M, K] float32."""
        return (self.values.float() - self.zero) * self.scale


def quantize_rows(x: Tensor) -> QuantizedRows:
    """[M, K] float, by torch's operators on the CPU."""
    x = x.float()
    # Both of `aminmax` at once take 3 to 20 times as long over rows, measured.
    low, high = x.amin(dim=-1, keepdim=True).clamp_max_(0), x.amax(dim=-1, keepdim=True).clamp_min_(0)
    scale = (high - low).div_(STEPS).clamp_min_(SMALLEST_SCALE)
    zero = LEAST - torch.div(low, scale).round_()
    values = torch.div(x, scale).add_(zero).round_().clamp_max_(MOST)
    return QuantizedRows(values.to(torch.int8), scale, zero)
