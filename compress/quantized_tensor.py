"""A weight matrix as integers and scales: what a method of quantization hands over, and what a format stores and gives back.

Knows which integers and scales each scheme may have. How they were found is a method's affair, how they are laid out in a
file a format's, and in memory a kernel's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels.cpu.int8_matmul import quantize_weight as round_for_int8
from ..kernels.quantize_weight import quantize_weight as round_weight_only

Scheme = Literal["w8a8", "w8a16", "w4a16"]
# What kernels have; published files are mostly of 128.
GROUPS = (32, 64, 128)
BITS: dict[Scheme, int] = {"w8a8": 8, "w8a16": 8, "w4a16": 4}


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A matrix whose element [n, k] is `(values[n, k] - zero[n, g]) * scale[n, g]`, with g = k // group, 0 without groups.

    Attributes:
        values: [N, K] int8; of W4A16 from -8 to 7.
        scale: [N, K / group] float32, [N, 1] without groups. Of W8A16 and W4A16 they are bf16 numbers, which is how they
            are stored and multiplied with.
        group: elements of a row that share a scale, one of GROUPS, a divisor of K; W4A16 only, which has nothing else.
        zero: the integers that stand for zero, [N, K / group] int8 from -8 to 7; of W4A16 only. None: 0 everywhere.

    Raises ValueError naming what does not fit.
    """

    values: Tensor
    scale: Tensor
    group: int | None
    scheme: Scheme
    zero: Tensor | None = None

    def __post_init__(self) -> None:
        if self.scheme not in BITS:
            raise ValueError(f"the scheme {self.scheme!r} is none of {', '.join(BITS)}.")
        if self.values.dim() != 2 or self.values.dtype is not torch.int8:
            raise ValueError(f"values are {_described(self.values)}; they have to be [N, K] int8.")
        rows, columns = self.values.shape
        if (self.group is not None) != (self.scheme == "w4a16"):
            raise ValueError(
                f"{self.scheme} with group {self.group}: w4a16 has groups, the others have none."
            )
        if self.group is not None and self.group not in GROUPS:
            raise ValueError(f"group is {self.group}; it may be {', '.join(map(str, GROUPS))}.")
        if self.group is not None and columns % self.group:
            raise ValueError(
                f"rows of {columns} elements are no whole groups of {self.group}; take another group."
            )
        groups = columns // self.group if self.group else 1
        if self.scale.shape != (rows, groups) or self.scale.dtype is not torch.float32:
            raise ValueError(f"scale is {_described(self.scale)}; it has to be [{rows}, {groups}] float32.")
        if not bool(torch.isfinite(self.scale).all()):
            raise ValueError("scale is not finite everywhere.")
        if self.scheme != "w8a8" and not torch.equal(self.scale, self.scale.bfloat16().float()):
            raise ValueError(
                f"scales of {self.scheme} have to be bf16 numbers: round them before the integers."
            )
        if self.scheme == "w4a16" and bool(((self.values < -8) | (self.values > 7)).any()):
            raise ValueError("values of w4a16 have to be from -8 to 7.")
        if self.zero is None:
            return
        if self.scheme != "w4a16":
            raise ValueError(f"{self.scheme} with zero points: only w4a16 has them.")
        if self.zero.shape != self.scale.shape or self.zero.dtype is not torch.int8:
            raise ValueError(f"zero is {_described(self.zero)}; it has to be [{rows}, {groups}] int8.")
        if bool(((self.zero < -8) | (self.zero > 7)).any()):
            raise ValueError("zero points of w4a16 have to be from -8 to 7.")

    @classmethod
    def nearest(cls, weight: Tensor, scheme: Scheme, group: int | None = None) -> "QuantizedTensor":
        """Float [N, K] rounded to nearest: the very integers and scales that serving makes of it on the fly."""
        if scheme == "w8a8":
            values, scale = round_for_int8(weight.contiguous())
            return cls(values, scale[:, None], group, scheme)
        values, scale = round_weight_only(weight, BITS[scheme], group)
        columns = weight.shape[1]
        groups = columns // group if group else 1
        return cls(values[:, :columns].contiguous(), scale[:, :groups].contiguous(), group, scheme)

    def dequantized(self) -> Tensor:
        """[N, K] float32, what the integers stand for."""
        rows, columns = self.values.shape
        grouped = self.values.view(rows, self.scale.shape[1], -1).float()
        if self.zero is not None:
            grouped -= self.zero[..., None]
        return (grouped * self.scale[..., None]).view(rows, columns)


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
