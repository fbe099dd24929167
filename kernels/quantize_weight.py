"""Rounds a weight matrix to integers of few bits, symmetrically, by output channel or by groups of it; done once, at load.

The same integers and scales on every machine: all is elementwise float32. Scales are bf16 numbers, so that a kernel that
takes bf16 scales multiplies with exactly the ones the integers were rounded by.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

# Elements of one output channel that may share a scale in 4 bits.
GROUPS = (32, 64, 128)
# How many do where nobody says otherwise. Reductions are padded by zeros to whole multiples of it.
GROUP = 128
# A slice at a time: float32 copies of a whole vocabulary head would be the peak of the process's memory.
SLICE_ELEMENTS = 1 << 20


def quantize_weight(weight: Tensor, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """[N, K] float -> ([N, K'] int8 with |q| < 2^(bits - 1), [N, G] float32 scales).

    K' is K rounded up to GROUP; G is K' / `group`, or 1 when `group` is None.
    """
    out_features, in_features = weight.shape
    width = -(-in_features // GROUP) * GROUP
    size = group or width
    most = 2 ** (bits - 1) - 1
    quantized = torch.empty(out_features, width, dtype=torch.int8, device=weight.device)
    scales = torch.empty(out_features, width // size, device=weight.device)
    rows = max(1, SLICE_ELEMENTS // width)
    for start in range(0, out_features, rows):
        part = pad(weight[start : start + rows].float(), (0, width - in_features))
        grouped = part.view(part.shape[0], -1, size)
        scale = (grouped.abs().amax(dim=2).clamp_min_(1e-30) / most).bfloat16().float()
        rounded = torch.div(grouped, scale[..., None]).round_().clamp_(-most, most)
        quantized[start : start + rows] = rounded.view_as(part)
        scales[start : start + rows] = scale
    return quantized, scales


def whole_groups(
    values: Tensor, scales: Tensor, zeros: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """[N, K] int8 with [N, G] scales and zero points of K / G elements each -> [N, K'] and [N, G'], as `quantize_weight`
    makes them. What is added is multiplied with zeros."""
    width, groups = values.shape[1], scales.shape[1]
    beyond = -width % GROUP
    values = pad(values, (0, beyond))
    if groups == 1:  # one scale for all of a row goes for its zeros too
        return values, scales, zeros
    more = (0, beyond * groups // width)
    return values, pad(scales, more), None if zeros is None else pad(zeros, more)


def pack_int4(quantized: Tensor, group: int = GROUP) -> Tensor:
    """[N, K'] int8 in -8 .. 7 -> [N, K' / 2] uint8, offset by 8.

    Byte j of a group holds element j in its low bits and, of a group of 128, element j + 64 in its high ones: either half of
    the bytes' bits is then consecutive elements, without shuffling.
    """
    halves = (quantized + 8).to(torch.uint8).view(quantized.shape[0], -1, 2, group // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)
