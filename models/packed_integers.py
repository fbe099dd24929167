"""Integers of 4 or 8 bits in words of 32, as compressed-tensors' "pack-quantized" has them.

Element k of a row is at bits (k mod n) * bits of word k div n, with n = 32 / bits, as an unsigned number: its value plus
2^(bits - 1). What a last word has left over is zero.
"""

import torch
from torch import Tensor


def pack(values: Tensor, bits: int) -> Tensor:
    """[N, K] int8 in -2^(bits - 1) .. 2^(bits - 1) - 1 -> [N, ceil(K * bits / 32)] int32."""
    columns = values.shape[1]
    unsigned = (values.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    unsigned = torch.nn.functional.pad(unsigned, (0, -columns % (32 // bits)))
    if bits == 4:
        unsigned = unsigned[:, ::2] | unsigned[:, 1::2] << 4
    # The machines that we run on put a word's low byte first.
    words: Tensor = unsigned.contiguous().view(torch.int32)
    return words


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse: -> [N, `columns`] int8."""
    octets = packed.contiguous().view(torch.uint8)
    if bits == 4:
        octets = torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)
    values = octets[:, :columns].to(torch.int16) - (1 << (bits - 1))
    return values.to(torch.int8)
