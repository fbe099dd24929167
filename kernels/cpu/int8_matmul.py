"""W8A8 matmul on a CPU: INT8 weights with one scale per output channel, INT8 activations with one scale and zero per token.

    y[m, n] = (float32(sum_k xq[m, k] * wq[n, k]) * weight_scale[n] - zero[m] * weight_sum[n]) * act_scale[m]  (+ bias[n])
    weight_sum[n] = float32(sum_k wq[n, k]) * weight_scale[n]

The sum is an exact integer, and the epilogue is the same float32 expression in the same order on every path. So a
row's result depends neither on its batch-mates nor on the path taken: choosing by the number of rows is safe.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..quantized_rows import QuantizedRows, quantize_rows
from .int8_product import int8_product
from .native import library as native
from .native.library import PackedWeight, library

INT8_MAX = 127
U8_ZERO_POINT = 128
# Up to this many weights `torch._int_mm` on the plain form is at least as fast as oneDNN at every number of rows: its
# call costs about 25 us less (measured on a 2-core Zen 5: 7 against 29 us for one row at 896x896).
SMALL_WEIGHT = 1 << 20
# From this many weights few rows are bound by memory, and the packed form is the faster one for a single row too.
LARGE_WEIGHT = 1 << 25
QUANTIZE_ELEMENTS = 1 << 20
# |acc| <= K * 128 * 128 must stay inside int32.
MAX_REDUCTION = (2**31 - 1) // (INT8_MAX + 1) ** 2


@dataclass(slots=True)
class Int8Weight:
    """A weight matrix ready to multiply; the product is the same in whatever form it is kept.

    Attributes:
        native: our own form, and then the only one.
        plain: [N, K] int8, for torch: the faster form for one row, at any number of rows for a small matrix.
        packed: oneDNN's blocked form: the faster one for several rows of a large matrix. Made by `pack`.
        weight_scale: [N] float32; weight_sum: [N] float32, for torch.
    """

    plain: Tensor | None
    packed: Tensor | None
    weight_scale: Tensor
    weight_sum: Tensor | None
    zero_points: Tensor
    out_features: int
    in_features: int
    native: PackedWeight | None = None

    @classmethod
    def quantize(cls, weight: Tensor) -> "Int8Weight":
        """From a float matrix [N, K]. Raises ValueError when K is too large for exact int32 accumulation."""
        return cls.of(*quantize_weight(weight))

    @classmethod
    def from_integers(cls, values: Tensor, scales: Tensor) -> "Int8Weight":
        """From [N, K] int8 and [N, 1] float32. Raises ValueError as `of` does."""
        return cls.of(values, scales[:, 0].contiguous())

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] float32."""
        return int8_matmul(x, self, bias)

    @classmethod
    def of(cls, plain: Tensor, weight_scale: Tensor) -> "Int8Weight":
        """From a [N, K] int8 matrix and its [N] scale.

        Raises ValueError when K is too large for exact int32 accumulation.
        """
        out_features, in_features = plain.shape
        if in_features == 1:
            raise ValueError(
                "K is 1; torch._int_mm computes such products wrongly (torch 2.13): keep it in float."
            )
        if in_features > MAX_REDUCTION:
            raise ValueError(f"K is {in_features}; int32 accumulation is exact only up to {MAX_REDUCTION}.")
        zero_points = torch.zeros(out_features, dtype=torch.int32)
        found = library()
        if found is None:
            weight_sum = plain.sum(dim=1, dtype=torch.int32).float().mul_(weight_scale)
            return cls(plain, None, weight_scale, weight_sum, zero_points, out_features, in_features)
        native = PackedWeight(found, plain, weight_scale)
        return cls(None, None, weight_scale, None, zero_points, out_features, in_features, native)

    def pack(self, *, keep_plain: bool) -> None:
        """Make the packed form where it is of use: not for a small matrix, nor where oneDNN is not exact.

        `keep_plain` keeps both: twice the memory for a faster single row (measured: 49 against 83 us at 4864x896), which
        is what decoding one stream is made of. May run in a thread beside `int8_matmul`.
        """
        if self.plain is None or self.plain.numel() <= SMALL_WEIGHT or not _onednn_is_exact():
            return
        self.packed = torch.ops.onednn.qlinear_prepack(self.plain, None)
        if not keep_plain or self.plain.numel() >= LARGE_WEIGHT:
            self.plain = None


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric round-to-nearest per output channel: [N, K] float -> ([N, K] int8, [N] float32 scale)."""
    if (natively := native.quantize_weight(weight)) is not None:
        return natively
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0])
    # A slice at a time: float32 copies of a whole vocabulary head would be the peak of the process's memory.
    rows = max(1, QUANTIZE_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows].float()
        part_scale = part.abs().amax(dim=1).clamp_min_(1e-12).div_(INT8_MAX)
        quantized[start : start + rows] = torch.div(part, part_scale[:, None]).round_()
        scale[start : start + rows] = part_scale
    return quantized, scale


def int8_matmul(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """[M, K] float -> [M, N] float32; `bias` is [N] float32."""
    if weight.native is not None:
        return weight.native.matmul(x, bias)
    return int8_matmul_quantized(quantize_rows(x), weight, bias)


def int8_matmul_quantized(x: QuantizedRows, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """The same by torch's operators, which may overwrite the integers."""
    plain, packed, weight_sum = weight.plain, weight.packed, weight.weight_sum
    assert weight_sum is not None
    if packed is None or (x.values.shape[0] == 1 and plain is not None):
        assert plain is not None
        # (One multiplication of int32 by float32 would be a dispatch less, and not vectorised: 4 times slower on 512 rows.)
        out = int8_product(x.values, plain).float().mul_(weight.weight_scale)
    else:
        # v + 128 as u8: flips the sign bit in place, without a conversion.
        unsigned = x.values.view(torch.uint8).bitwise_xor_(0x80)
        out = _onednn_product(unsigned, packed, weight.weight_scale, weight.zero_points)
    out.sub_(x.zero * weight_sum).mul_(x.scale)
    return out if bias is None else out.add_(bias)


def _onednn_product(unsigned: Tensor, packed: Tensor, weight_scale: Tensor, zero_points: Tensor) -> Tensor:
    """float32(sum_k (unsigned[m, k] - 128) * weight[n, k]) * weight_scale[n]: [M, K] u8 -> [M, N] float32."""
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        unsigned,
        1.0,
        U8_ZERO_POINT,
        packed,
        weight_scale,
        zero_points,
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return product


_ONEDNN_EXACT: bool | None = None


def _onednn_is_exact() -> bool:
    """Whether oneDNN's u8 x s8 product is exact here: chips without VNNI may saturate in int16. Tried once."""
    global _ONEDNN_EXACT
    if _ONEDNN_EXACT is None:
        plain = torch.full((32, 64), INT8_MAX, dtype=torch.int8)
        largest = torch.full((8, 64), 255, dtype=torch.uint8)
        try:
            packed = torch.ops.onednn.qlinear_prepack(plain, None)
            out = _onednn_product(largest, packed, torch.ones(32), torch.zeros(32, dtype=torch.int32))
            _ONEDNN_EXACT = bool((out == 64 * INT8_MAX * INT8_MAX).all())
        except (RuntimeError, AttributeError):
            _ONEDNN_EXACT = False
    return _ONEDNN_EXACT
