"""The KV of all layers on a GPU, in pages: K and V of one head and 64 tokens beside each other, as its kernels read them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.cpu.sparse_attention import SAMPLE_EVERY, SparseTelemetry
from ..kernels.gpu.paged_attention import SPLIT, paged_attention
from ..kernels.gpu.paged_batch import GRANULES_PER_PAGE, PagedBatch
from ..kernels.gpu.sparse_attention import KEYS, MEAN_STD, MIN_MAX, SUMS, sparse_attention
from ..kernels.gpu.sparse_prompt import sparse_prompt
from ..kernels.gpu.store_kv import store_kv
from ..kernels.span import PAGE_SIZE, Span
from .kv_cache import LayerShape

FORMULAS = {"keys": KEYS, "min_max": MIN_MAX, "mean_std": MEAN_STD}


class GpuKVCache:
    """Per layer, pages [num_pages, Hkv, 2, 64, D] and, for INT8, scales [num_pages, Hkv, 2, 64] float32.

    Not zeroed: what no sequence has stored is never read.

    `sparse`: what decodes that attend to a part of the keys choose it by, "keys", or summaries [num_pages, Hkv, 4, 2, D] of
    16 keys that are kept beside: "min_max" or "mean_std".

    Raises ValueError when `block_size` is no page, or keys and values differ in width.
    """

    def __init__(
        self,
        shapes: dict[int, LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        sparse: str | None = None,
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
        self._formula = None if sparse is None else FORMULAS[sparse]
        self._telemetry = torch.zeros(SUMS, dtype=torch.int64, device=device)
        self._of_prompts = torch.zeros(SUMS, dtype=torch.int64, device=device)
        self._bounds = torch.zeros(2, dtype=torch.float64, device=device)
        self._sparse_calls = 0
        self.summaries: dict[int, Tensor | None] = {}
        self.pages: dict[int, Tensor] = {}
        self.scales: dict[int, Tensor | None] = {}
        for layer, shape in shapes.items():
            size = (num_blocks, shape.num_kv_heads, 2, PAGE_SIZE)
            self.pages[layer] = torch.empty(*size, shape.key_dim, dtype=dtype, device=device)
            self.scales[layer] = torch.empty(size, device=device) if dtype is torch.int8 else None
            self.summaries[layer] = None
            if self._formula not in (None, KEYS):
                kind = torch.bfloat16 if dtype is torch.int8 else dtype
                summary = (num_blocks, shape.num_kv_heads, GRANULES_PER_PAGE, 2, shape.key_dim)
                self.summaries[layer] = torch.empty(summary, dtype=kind, device=device)

    @property
    def sparse_telemetry(self) -> SparseTelemetry:
        """One row for each KV head here; by the keys themselves the estimate is the true mass.

        What can have been dropped is bounded from "min_max" summaries alone.
        """
        if self._formula is None:
            return SparseTelemetry()
        rows, kept, context, millionths = self._telemetry.tolist()
        mass = millionths / 1e6
        sampled = (rows, mass) if self._formula == KEYS else (0, 0.0)
        bounded, bound = self._bounds.tolist()
        blocks, prompt_kept, prompt_context, prompt_millionths = self._of_prompts.tolist()
        return SparseTelemetry(
            rows,
            0,
            kept,
            context,
            mass,
            sampled_rows=sampled[0],
            sampled_mass=sampled[1],
            bounded_rows=int(bounded),
            dropped_bound=bound,
            prompt_blocks=blocks,
            prompt_kept_tokens=prompt_kept,
            prompt_context_tokens=prompt_context,
            prompt_estimated_mass=prompt_millionths / 1e6,
        )

    def prepare(self, spans: Sequence[Span]) -> PagedBatch:
        return PagedBatch.build(spans, self.device)

    def prepare_decodes(self, spans: Sequence[Span]) -> PagedBatch:
        """`prepare` for dense decodes, so that two steps with batches of the same `shape_of` differ in `packed` alone."""
        return PagedBatch.build(spans, self.device, context_room=self.shape_of(spans)[1])

    @staticmethod
    def shape_of(spans: Sequence[Span]) -> tuple[int, int]:
        """Decodes, and how long their contexts may be: attention is launched for as many splits, a power of two."""
        splits = -(-max(span.context_len for span in spans) // SPLIT)
        return len(spans), SPLIT << (splits - 1).bit_length()

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
        out: Tensor | None = None,
    ) -> Tensor:
        """As `KVCache.attend`; `out` [T, Hq, D]: where the result goes, new memory without it."""
        pages, scales, summaries = self.pages[layer], self.scales[layer], self.summaries[layer]
        formula = KEYS if self._formula is None else self._formula
        store_kv(
            key.transpose(0, 1),
            value.transpose(0, 1),
            pages,
            scales,
            summaries,
            batch,
            formula=max(formula, MIN_MAX),
        )
        may_be_sparse = sliding_window is None and sinks is None
        if batch.prompt_blocks is not None and not may_be_sparse:
            batch = batch.densely()
        rows = query.transpose(0, 1)
        out = paged_attention(
            rows,
            pages,
            scales,
            batch,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
            leave_sparse=may_be_sparse,
            out=out,
        ).out
        if may_be_sparse and batch.masses is not None:
            sparse_attention(
                rows,
                pages,
                scales,
                summaries,
                batch,
                out,
                scaling=scaling,
                softcap=softcap,
                telemetry=self._telemetry,
                formula=formula,
                bounds=self._bounds if self._is_sampled(formula, softcap) else None,
            )
        if may_be_sparse and batch.prompt_blocks is not None:
            sparse_prompt(
                rows,
                pages,
                scales,
                batch,
                out,
                scaling=scaling,
                softcap=softcap,
                telemetry=self._of_prompts,
            )
        return out

    def _is_sampled(self, formula: int, softcap: float | None) -> bool:
        """Whether this step and layer of sparse decodes is one whose drop is bounded."""
        self._sparse_calls += 1
        return formula == MIN_MAX and softcap is None and self._sparse_calls % SAMPLE_EVERY == 1

    def broken_blocks(self, block_ids: list[int]) -> list[int]:
        ids = torch.tensor(block_ids, device=self.device)
        broken = torch.zeros(len(block_ids), dtype=torch.bool, device=self.device)
        for layer, pages in self.pages.items():
            # INT8 itself is always finite: what was broken shows in its scale.
            values = self.scales[layer] if pages.dtype is torch.int8 else pages
            assert values is not None
            broken |= ~torch.isfinite(values[ids]).flatten(1).all(dim=1)
        return [block_id for block_id, is_broken in zip(block_ids, broken.tolist(), strict=True) if is_broken]
