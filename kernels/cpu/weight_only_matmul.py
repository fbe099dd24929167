"""W8A16 and W4A16 on a CPU: bf16 activations, weights in 8 or 4 bits, for models that INT8 activations hurt.

    y[m, n] = sum over groups g of scale[n, g] * sum_(k in g) bf16(x[m, k]) * (wq[n, k] - zero[n, g])  (+ bias[n])

by the products that torch brings, which sum every row in the same order however many there are. They read fewer bytes than
W8A8 does at 4 bits, but multiply in bf16: prompts take longer than in W8A8.
"""

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from ..quantize_weight import GROUP, quantize_weight, whole_groups

# torch's kernels take whole blocks of output channels.
CHANNELS = 64


@dataclass(slots=True)
class Int8WeightOnly:
    """[N', K'] int8 and a float32 scale for each output channel; N' and K' are padded by zeros.

    Attributes:
        units: [N'] bf16, the scales that torch is told of: it takes no others than bf16, which not every stored one is.
    """

    plain: Tensor
    weight_scale: Tensor
    units: Tensor
    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> "Int8WeightOnly":
        """From a float matrix [N, K]."""
        return cls._of(*quantize_weight(weight, 8, None), *weight.shape)

    @classmethod
    def from_integers(cls, values: Tensor, scales: Tensor) -> "Int8WeightOnly":
        """From [N, K] int8 and [N, 1] float32."""
        whole, whole_scales, _ = whole_groups(values, scales)
        return cls._of(whole, whole_scales, *values.shape)

    @classmethod
    def _of(cls, values: Tensor, scales: Tensor, out_features: int, in_features: int) -> "Int8WeightOnly":
        plain = _whole_channels(values)
        units = torch.ones(plain.shape[0], dtype=torch.bfloat16)
        return cls(plain, scales[:, 0].contiguous(), units, out_features, in_features)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] float32."""
        if not x.shape[0]:
            return x.new_empty(0, self.out_features, dtype=torch.float32)
        out = torch._weight_int8pack_mm(_activations(x, self.plain.shape[1]), self.plain, self.units)
        return _finished(out[:, : self.out_features].float().mul_(self.weight_scale), bias)


@dataclass(slots=True)
class Int4Weight:
    """torch's blocks of [N', K'] in 4 bits, and [K' / group, N', 2] bf16: by what a group is multiplied, and what
    is added then.

    Attributes:
        scales_and_zeros: one where scales, and zeros times scales, are bf16 numbers; others are the sum of several, and so
            is the product.
        group: 32, 64 or 128.
    """

    packed: Tensor
    scales_and_zeros: list[Tensor]
    group: int
    width: int
    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> "Int4Weight":
        """From a float matrix [N, K]."""
        return cls._of(*quantize_weight(weight, 4, GROUP), None, *weight.shape)

    @classmethod
    def from_integers(cls, values: Tensor, scales: Tensor, zeros: Tensor | None = None) -> "Int4Weight":
        """From [N, K] int8 in -8 .. 7, [N, K / group] float32 and, where zero is not 0, as many int8 in -8 .. 7."""
        return cls._of(*whole_groups(values, scales, zeros), *values.shape)

    @classmethod
    def _of(
        cls, values: Tensor, scales: Tensor, zeros: Tensor | None, out_features: int, in_features: int
    ) -> "Int4Weight":
        width = values.shape[1]
        whole = (_whole_channels(values) + 8).int()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
        added = [] if zeros is None else _as_bf16_sum(-zeros * scales)
        nothing = torch.zeros_like(scales, dtype=torch.bfloat16)
        pairs = [
            torch.stack([_whole_channels(term).t() for term in pair], dim=-1).contiguous()
            for pair in zip_longest(_as_bf16_sum(scales), added, fillvalue=nothing)
        ]
        return cls(packed, pairs, width // scales.shape[1], width, out_features, in_features)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] float32."""
        if not x.shape[0]:
            return x.new_empty(0, self.out_features, dtype=torch.float32)
        rows = _activations(x, self.width)
        products = [
            torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, pairs)
            for pairs in self.scales_and_zeros
        ]
        out = products[0][:, : self.out_features].float()
        for product in products[1:]:
            out += product[:, : self.out_features]
        return _finished(out, bias)


def _as_bf16_sum(scales: Tensor) -> list[Tensor]:
    """Two bf16 tensors for float16 scales, at most three for float32 ones. With scales in those types torch takes a hundred
    times as long as in bf16 (measured, 4096x4096)."""
    terms = [scales.bfloat16()]
    for _ in range(2):
        rest = scales - torch.stack(terms).float().sum(dim=0)
        if not rest.any():
            break
        terms.append(rest.bfloat16())
    return terms


def _whole_channels(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[0] % CHANNELS))


def _activations(x: Tensor, width: int) -> Tensor:
    x = x.bfloat16()
    return x if x.shape[1] == width else torch.nn.functional.pad(x, (0, width - x.shape[1]))


def _finished(out: Tensor, bias: Tensor | None) -> Tensor:
    """`out`, which is ours to change."""
    return out if bias is None else out.add_(bias)
