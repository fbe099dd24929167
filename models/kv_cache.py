"""The KV tensors of all layers. Which block belongs to whom is the block manager's business."""

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.cpu.paged_attention import KEY_TILE


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer stores per token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KVCache:
    """One pool of K [Hkv, num_slots, D] and one of V per layer; block b holds slots [b * block_size, (b+1) * block_size).

    Zeroed at start and followed by one spare key tile, so that a kernel may read whole tiles past a context's end.
    The system commits memory only where KV is written, so a large pool costs nothing until it is used.
    """

    def __init__(
        self, shapes: dict[int, LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        num_slots = num_blocks * block_size + KEY_TILE
        self.block_size = block_size
        self.layers: dict[int, tuple[Tensor, Tensor]] = {
            index: (
                _lazy_zeros(shape.num_kv_heads, num_slots, shape.key_dim, dtype=dtype),
                _lazy_zeros(shape.num_kv_heads, num_slots, shape.value_dim, dtype=dtype),
            )
            for index, shape in shapes.items()
        }

    def broken_blocks(self, block_ids: list[int]) -> list[int]:
        """Those that hold NaN or infinity."""

        def is_broken(block_id: int) -> bool:
            slots = slice(block_id * self.block_size, (block_id + 1) * self.block_size)
            return not all(
                bool(torch.isfinite(pool[:, slots]).all()) for pair in self.layers.values() for pool in pair
            )

        return [block_id for block_id in block_ids if is_broken(block_id)]

    def clear_blocks(self, block_ids: list[int]) -> None:
        """Zero blocks that may hold NaN or infinity, before anyone reads them."""
        if not block_ids:
            return
        slots = (torch.tensor(block_ids)[:, None] * self.block_size + torch.arange(self.block_size)).flatten()
        for keys, values in self.layers.values():
            keys.index_fill_(1, slots, 0)
            values.index_fill_(1, slots, 0)


def _lazy_zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros in untouched 4 KiB pages. `torch.zeros` would write, and so commit, all of them; `numpy.zeros` asks for huge
    pages, so that a first block would commit 2 MiB per layer and head."""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def bytes_per_token(shapes: dict[int, LayerShape], dtype: torch.dtype) -> int:
    return sum(shape.elements for shape in shapes.values()) * dtype.itemsize
