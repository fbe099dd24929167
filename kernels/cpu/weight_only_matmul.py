"""W8A16 and W4A16 on a CPU: bf16 activations, weights in 8 or 4 bits, for models that INT8 activations hurt.

    y[m, n] = sum over groups g of scale[n, g] * sum_(k in g) bf16(x[m, k]) * wq[n, k]  (+ bias[n])

by the products that torch brings, which sum every row in the same order however many there are. They read fewer bytes than
W8A8 does at 4 bits, but multiply in bf16: prompts take longer than in W8A8.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..quantize_weight import GROUP, quantize_weight

# torch's kernels take whole blocks of output channels.
CHANNELS = 64


@dataclass(slots=True)
class Int8WeightOnly:
    """[N', K'] int8 and a bf16 scale for each output channel; N' and K' are padded by zeros."""

    plain: Tensor
    weight_scale: Tensor
    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> "Int8WeightOnly":
        """From a float matrix [N, K]."""
        quantized, scales = quantize_weight(_whole_channels(weight), 8, None)
        return cls(quantized, scales[:, 0].bfloat16(), *weight.shape)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] float32."""
        if not x.shape[0]:
            return x.new_empty(0, self.out_features, dtype=torch.float32)
        out = torch._weight_int8pack_mm(_activations(x, self.plain.shape[1]), self.plain, self.weight_scale)
        return _finished(out, self.out_features, bias)


@dataclass(slots=True)
class Int4Weight:
    """torch's blocks of [N', K'] in 4 bits, and [K' / 128, N', 2] bf16 scales and zeros of each group of 128."""

    packed: Tensor
    scales_and_zeros: Tensor
    width: int
    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> "Int4Weight":
        """From a float matrix [N, K]."""
        quantized, scales = quantize_weight(_whole_channels(weight), 4, GROUP)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu((quantized + 8).int(), 1)
        pairs = torch.stack([scales.t(), torch.zeros_like(scales.t())], dim=-1)
        return cls(packed, pairs.contiguous().bfloat16(), quantized.shape[1], *weight.shape)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] float32."""
        if not x.shape[0]:
            return x.new_empty(0, self.out_features, dtype=torch.float32)
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(
            _activations(x, self.width), self.packed, GROUP, self.scales_and_zeros
        )
        return _finished(out, self.out_features, bias)


def _whole_channels(weight: Tensor) -> Tensor:
    return torch.nn.functional.pad(weight, (0, 0, 0, -weight.shape[0] % CHANNELS))


def _activations(x: Tensor, width: int) -> Tensor:
    x = x.bfloat16()
    return x if x.shape[1] == width else torch.nn.functional.pad(x, (0, width - x.shape[1]))


def _finished(out: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
    out = out[:, :out_features].float()
    return out if bias is None else out.add_(bias)
