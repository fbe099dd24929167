"""A step's batch as the GPU's kernels see it: block tables, lengths, and which granules of pages get new tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..span import NULL_BLOCK, PAGE_SIZE, Span

# Tokens that share one summary of their keys.
GRANULE = 16
GRANULES_PER_PAGE = PAGE_SIZE // GRANULE


@dataclass(slots=True)
class PagedBatch:
    """S sequences with T rows in all; those with one row come first.

    Attributes:
        block_tables: [S, P] int32 pages in order, padded.
        cu_seqlens_q: [S + 1] int32, the first row of each sequence, and T.
        context_lens: [S] int32, tokens stored when the step is over.
        granules: [G, 4] int32: granule in the pool (page * 4 + its number in the page), first row, first place, count of
            the tokens that this step adds to it.
        num_decodes: sequences with one row.
        max_context_len: longest of the sequences with one row.
        max_query_len: most rows of one sequence.
        dense_lens, sparse_lens: [num_decodes] int32, the context's length where a decode is of that kind, else 0; and
        masses: [num_decodes] float32, the share of the attention that a sparse one keeps. None without sparse decodes.
    """

    block_tables: Tensor
    cu_seqlens_q: Tensor
    context_lens: Tensor
    granules: Tensor
    num_decodes: int
    max_context_len: int
    max_query_len: int
    dense_lens: Tensor | None = None
    sparse_lens: Tensor | None = None
    masses: Tensor | None = None

    @property
    def num_prefills(self) -> int:
        return self.context_lens.shape[0] - self.num_decodes

    @classmethod
    def build(cls, spans: Sequence[Span], device: torch.device) -> "PagedBatch":
        """`spans` in the order of their rows, those of one token first; one copy to the device."""
        num_decodes = next((i for i, span in enumerate(spans) if span.num_tokens > 1), len(spans))
        assert all(span.num_tokens > 1 for span in spans[num_decodes:]), "decodes come first"
        num_pages = max((len(span.block_table) for span in spans), default=0)
        tables = np.full((len(spans), num_pages), NULL_BLOCK, np.int32)
        for row, span in enumerate(spans):
            tables[row, : len(span.block_table)] = span.block_table
        starts = np.zeros(len(spans) + 1, np.int32)
        np.cumsum([span.num_tokens for span in spans], out=starts[1:])
        lens = np.array([span.context_len for span in spans], np.int32)
        granules = np.array(_granules(spans), np.int32)
        masses = np.array([span.sparse_mass or 0.0 for span in spans[:num_decodes]], np.float32)
        is_sparse = masses > 0
        parts = [tables, starts, lens, granules]
        if is_sparse.any():
            own = lens[:num_decodes]
            parts += [np.where(is_sparse, 0, own), np.where(is_sparse, own, 0), masses.view(np.int32)]
        whole = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        if device.type == "cuda":
            whole = whole.pin_memory().to(device, non_blocking=True)
        table, start, length, granule, *rest = whole.split([part.size for part in parts])
        return cls(
            table.view(tables.shape),
            start,
            length,
            granule.view(-1, 4),
            num_decodes,
            int(lens[:num_decodes].max(initial=0)),
            max((span.num_tokens for span in spans), default=0),
            *((rest[0], rest[1], rest[2].view(torch.float32)) if rest else ()),
        )


def _granules(spans: Sequence[Span]) -> list[tuple[int, int, int, int]]:
    """The rows of `granules`. Neighbouring spans of one sequence, in order, write their granules as one."""
    found: list[tuple[int, int, int, int]] = []
    row = 0
    before: Span | None = None
    for span in spans:
        position = span.first_position
        if (
            before is not None
            and before.block_table is span.block_table
            and before.context_len == position
            and position % GRANULE
        ):
            number, first_row, place, count = found.pop()
            row, position = row - count, position - count
            assert (first_row, place) == (row, position % GRANULE)
        while position < span.context_len:
            stop = min(span.context_len, (position // GRANULE + 1) * GRANULE)
            page = span.block_table[position // PAGE_SIZE]
            number = page * GRANULES_PER_PAGE + position % PAGE_SIZE // GRANULE
            found.append((number, row, position % GRANULE, stop - position))
            row += stop - position
            position = stop
        before = span
    return found
