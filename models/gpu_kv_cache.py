"""The KV of all layers on a GPU, in pages: K and V of one head and 64 tokens beside each other, as its kernels read them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.cpu.sparse_attention import SparseTelemetry
from ..kernels.gpu.paged_attention import paged_attention
from ..kernels.gpu.paged_batch import PagedBatch
from ..kernels.gpu.store_kv import store_kv
from ..kernels.span import PAGE_SIZE, Span
from .kv_cache import LayerShape


class GpuKVCache:
    """Per layer, pages [num_pages, Hkv, 2, 64, D] and, for INT8, scales [num_pages, Hkv, 2, 64] float32.

    Not zeroed: what no sequence has stored is never read.

    Raises ValueError when `block_size` is no page, or keys and values differ in width.
    """

    def __init__(
        self,
        shapes: dict[int, LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if block_size != PAGE_SIZE:
            raise ValueError(
                f"block_size is {block_size}; on a GPU a block is a page of {PAGE_SIZE} tokens: leave it out."
            )
        for layer, shape in shapes.items():
            if shape.key_dim != shape.value_dim:
                raise ValueError(
                    f"Layer {layer} has keys of {shape.key_dim} and values of {shape.value_dim} channels; the GPU kernels "
                    "need them alike. Serve this model with device = 'cpu'."
                )
        self.block_size = block_size
        self.device = device
        self.sparse_telemetry = SparseTelemetry()
        self.pages: dict[int, Tensor] = {}
        self.scales: dict[int, Tensor | None] = {}
        for layer, shape in shapes.items():
            size = (num_blocks, shape.num_kv_heads, 2, PAGE_SIZE)
            self.pages[layer] = torch.empty(*size, shape.key_dim, dtype=dtype, device=device)
            self.scales[layer] = torch.empty(size, device=device) if dtype is torch.int8 else None

    def prepare(self, spans: Sequence[Span]) -> PagedBatch:
        return PagedBatch.build(spans, self.device)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        batch: PagedBatch,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        pages, scales = self.pages[layer], self.scales[layer]
        store_kv(key.transpose(0, 1), value.transpose(0, 1), pages, scales, None, batch)
        return paged_attention(
            query.transpose(0, 1),
            pages,
            scales,
            batch,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
        ).out

    def broken_blocks(self, block_ids: list[int]) -> list[int]:
        ids = torch.tensor(block_ids, device=self.device)
        broken = torch.zeros(len(block_ids), dtype=torch.bool, device=self.device)
        for layer, pages in self.pages.items():
            # INT8 itself is always finite: what was broken shows in its scale.
            values = self.scales[layer] if pages.dtype is torch.int8 else pages
            assert values is not None
            broken |= ~torch.isfinite(values[ids]).flatten(1).all(dim=1)
        return [block_id for block_id, is_broken in zip(block_ids, broken.tolist(), strict=True) if is_broken]
