"""The KV of all layers in memory, as slots in a row per head: runs of blocks are read in place."""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.cpu.attention_batch import attention_batch, fresh_blocks
from ..kernels.cpu.native.attention import can_attend, store_rounded
from ..kernels.cpu.native.library import MOST_HEAD_DIM
from ..kernels.cpu.paged_attention import KEY_TILE, AttentionMetadata, paged_attention, store_kv
from ..kernels.cpu.sparse_attention import GRANULE, KeySketch, SparseTelemetry
from ..kernels.span import Span
from .kv_cache import LayerShape


class CpuKVCache:
    """One pool of K [Hkv, num_slots, D] and one of V per layer; block b holds slots [b * block_size, (b+1) * block_size).

    Zeroed at start and followed by one spare key tile, so that a kernel may read whole tiles past a context's end.
    The system commits memory only where KV is written, so a large pool costs nothing until it is used.

    With `sparse`, the keys are kept in INT8 beside, for decodes and prompts that attend to a part of them.

    INT8 pools have scales [Hkv, num_slots] beside them, of a token and head each; the C library rounds what it stores, and
    reads it as floats.

    Raises ValueError for INT8 KV that is sparse or without the library, and when `block_size` does not divide the tile that
    attention reads.
    """

    def __init__(
        self,
        shapes: dict[int, LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        *,
        sparse: bool = False,
    ) -> None:
        if KEY_TILE % block_size:
            raise ValueError(
                f"block_size is {block_size}; it must divide {KEY_TILE}, the tile that attention reads."
            )
        if sparse and block_size % GRANULE:
            raise ValueError(
                f"block_size is {block_size}; sparse attention keeps whole granules of {GRANULE} tokens, "
                "of which a block must be made."
            )
        num_slots = num_blocks * block_size + KEY_TILE
        self.block_size = block_size
        widest = max((max(shape.key_dim, shape.value_dim) for shape in shapes.values()), default=0)
        self._native = can_attend(dtype, widest)
        if dtype is torch.int8 and not self._native:
            raise ValueError(
                "kv_cache_dtype is 'int8' (or the model's folder says so), which on a CPU takes the C kernels (x86-64 "
                "with AVX2 or AVX-512, a C compiler) "
                f"and heads of at most {MOST_HEAD_DIM}, here {widest}; set it to 'none'."
            )
        if dtype is torch.int8 and sparse:
            raise ValueError(
                "kv_cache_dtype is 'int8' (or the model's folder says so), which on a CPU does not go with "
                "sparse_attention; set it to 'none', or leave out sparse_attention."
            )
        self.layers: dict[int, tuple[Tensor, Tensor]] = {
            index: (
                _lazy_zeros(shape.num_kv_heads, num_slots, shape.key_dim, dtype=dtype),
                _lazy_zeros(shape.num_kv_heads, num_slots, shape.value_dim, dtype=dtype),
            )
            for index, shape in shapes.items()
        }
        self.scales: dict[int, tuple[Tensor, Tensor]] = {}
        if dtype is torch.int8:
            self.scales = {
                index: (
                    _lazy_zeros(shape.num_kv_heads, num_slots, dtype=torch.float32),
                    _lazy_zeros(shape.num_kv_heads, num_slots, dtype=torch.float32),
                )
                for index, shape in shapes.items()
            }
        self.sketches: dict[int, KeySketch] = {}
        if sparse:
            self.sketches = {
                index: KeySketch(
                    _lazy_zeros(shape.num_kv_heads, num_slots, shape.key_dim, dtype=torch.int8),
                    _lazy_zeros(shape.num_kv_heads, num_slots, dtype=torch.float32),
                )
                for index, shape in shapes.items()
            }
        self.sparse_telemetry = SparseTelemetry()

    def prepare(self, spans: Sequence[Span]) -> AttentionMetadata:
        if self.sketches or not self._native:
            # Torch's operators read whole tiles, and a former owner may have left NaN in what is not written yet.
            self._clear(fresh_blocks(spans, self.block_size))
        return attention_batch(spans, self.block_size, native=self._native)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        batch: AttentionMetadata,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        keys, values = self.layers[layer]
        if (scales := self.scales.get(layer)) is None:
            store_kv(key, value, keys, values, batch.slot_mapping)
        else:
            store_rounded(key, keys, scales[0], batch.slot_mapping)
            store_rounded(value, values, scales[1], batch.slot_mapping)
        return self.attend_stored(
            layer,
            query,
            key,
            batch,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
        )

    def attend_stored(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        batch: AttentionMetadata,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """`attend` for rows whose K and V are in the pool already."""
        keys, values = self.layers[layer]
        scales, dtype = self.scales.get(layer), query.dtype
        sketch = self.sketches.get(layer)
        if sketch is not None:
            sketch.store(key, batch.slot_mapping)
        return paged_attention(
            query if scales is None else query.float(),
            keys,
            values,
            batch,
            scales=scales,
            sketch=sketch,
            telemetry=self.sparse_telemetry,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
        ).to(dtype)

    def broken_blocks(self, block_ids: list[int]) -> list[int]:
        floats = self.scales or self.layers

        def is_broken(block_id: int) -> bool:
            slots = slice(block_id * self.block_size, (block_id + 1) * self.block_size)
            return not all(
                bool(torch.isfinite(pool[:, slots]).all()) for pair in floats.values() for pool in pair
            )

        return [block_id for block_id in block_ids if is_broken(block_id)]

    def _clear(self, block_ids: list[int]) -> None:
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
