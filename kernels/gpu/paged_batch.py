"""A step's batch as the GPU's kernels see it: block tables, lengths, and which granules of pages get new tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..span import NULL_BLOCK, PAGE_SIZE, Span, prompt_blocks
from ..transfer import upload

# Tokens that share one summary of their keys.
GRANULE = 16
GRANULES_PER_PAGE = PAGE_SIZE // GRANULE
# Of the page that is nobody's, no token.
NO_GRANULE = (NULL_BLOCK * GRANULES_PER_PAGE, 0, 0, 0)


@dataclass(slots=True)
class PagedBatch:
    """S sequences with T rows in all: decodes first, then chunks of prompts, then those of sparse ones.

    Attributes:
        block_tables: [S, P] int32 pages in order, padded.
        cu_seqlens_q: [S + 1] int32, the first row of each sequence, and T.
        context_lens: [S] int32, tokens stored when the step is over.
        granules: [G, 4] int32: granule in the pool (page * 4 + its number in the page), first row, first place, count of
            the tokens that this step adds to it.
        num_decodes, num_prefills: sequences of the first and the second kind.
        max_context_len: longest of the decodes.
        max_query_len: most rows of one of the second kind; max_prompt_len: or of the third.
        dense_lens, sparse_lens: [num_decodes] int32, the context's length where a decode is of that kind, else 0; and
        masses: [num_decodes] float32, the share of the attention that a sparse one keeps. None without sparse decodes.
        prompt_blocks: [Q, 4] int32: sequence, first row, rows, and number in the sequence of every block of a sparse prompt;
        prompt_masses: [Q] float32, the share that each of its rows keeps; most_prompt_blocks: blocks of keys that the last
            of any prompt chooses from. None and 0 without sparse prompts.
        packed: [N] int32, all of these tensors, of which they are views.
    """

    block_tables: Tensor
    cu_seqlens_q: Tensor
    context_lens: Tensor
    granules: Tensor
    num_decodes: int
    num_prefills: int
    max_context_len: int
    max_query_len: int
    packed: Tensor
    dense_lens: Tensor | None = None
    sparse_lens: Tensor | None = None
    masses: Tensor | None = None
    prompt_blocks: Tensor | None = None
    prompt_masses: Tensor | None = None
    most_prompt_blocks: int = 0
    max_prompt_len: int = 0

    def densely(self) -> "PagedBatch":
        """The same, sparse prompts being chunks of dense ones; for layers that have no other attention."""
        assert self.prompt_blocks is not None
        return replace(
            self,
            num_prefills=self.context_lens.shape[0] - self.num_decodes,
            max_query_len=self.max_prompt_len,
            prompt_blocks=None,
            prompt_masses=None,
        )

    @classmethod
    def build(
        cls, spans: Sequence[Span], device: torch.device, *, context_room: int | None = None
    ) -> "PagedBatch":
        """`spans` in the order of their rows: decodes, chunks of prompts, chunks of sparse ones; one copy to the device.

        `context_room`: laid out as if dense decodes of such a length were among them, each with a granule of its own; so
        that batches of as many decodes, all of them dense and none of them longer, differ in `packed` alone.
        """
        num_decodes = next((i for i, span in enumerate(spans) if not span.is_decode), len(spans))
        num_dense = next((i for i, span in enumerate(spans) if span.is_sparse_prompt), len(spans))
        assert not any(span.is_decode for span in spans[num_decodes:]), "decodes come first"
        assert all(span.is_sparse_prompt for span in spans[num_dense:]), "sparse prompts come last"
        num_pages = max((len(span.block_table) for span in spans), default=0)
        if context_room is not None:
            num_pages = -(-context_room // PAGE_SIZE)
        tables = np.full((len(spans), num_pages), NULL_BLOCK, np.int32)
        for row, span in enumerate(spans):
            used = span.block_table[:num_pages]
            tables[row, : len(used)] = used
        starts = np.zeros(len(spans) + 1, np.int32)
        np.cumsum([span.num_tokens for span in spans], out=starts[1:])
        lens = np.array([span.context_len for span in spans], np.int32)
        written = _granules(spans)
        if context_room is not None:
            written += [NO_GRANULE] * (len(spans) - len(written))
        granules = np.array(written, np.int32)
        masses = np.array([span.sparse_mass or 0.0 for span in spans[:num_decodes]], np.float32)
        is_sparse = masses > 0
        blocks, shares = _prompt_blocks(spans, starts, num_dense)
        own = lens[:num_decodes]
        decided = [np.where(is_sparse, 0, own), np.where(is_sparse, own, 0), masses.view(np.int32)]
        prompts = [blocks, shares.view(np.int32)]
        parts = [tables, starts, lens, granules]
        parts += decided if is_sparse.any() else []
        parts += prompts if len(blocks) else []
        whole = upload(torch.from_numpy(np.concatenate([part.ravel() for part in parts])), device)
        table, start, length, granule, *rest = whole.split([part.size for part in parts])
        built = cls(
            table.view(tables.shape),
            start,
            length,
            granule.view(-1, 4),
            num_decodes,
            num_dense - num_decodes,
            int(lens[:num_decodes].max(initial=0)) if context_room is None else context_room,
            max((span.num_tokens for span in spans[:num_dense]), default=0),
            whole,
        )
        if is_sparse.any():
            built.dense_lens, built.sparse_lens = rest[:2]
            built.masses = rest[2].view(torch.float32)
        if len(blocks):
            built.prompt_blocks = rest[-2].view(-1, 4)
            built.prompt_masses = rest[-1].view(torch.float32)
            built.most_prompt_blocks = int(blocks[:, 3].max()) + 1
            built.max_prompt_len = max(span.num_tokens for span in spans)
        return built


def _prompt_blocks(
    spans: Sequence[Span], starts: np.ndarray, num_dense: int
) -> tuple[np.ndarray, np.ndarray]:
    """`prompt_blocks` and `prompt_masses` of the spans from `num_dense` on."""
    blocks: list[tuple[int, int, int, int]] = []
    masses: list[float] = []
    for seq, span in enumerate(spans[num_dense:], num_dense):
        row = int(starts[seq])
        for number, rows in prompt_blocks(span):
            blocks.append((seq, row, rows, number))
            masses.append(span.sparse_mass or 0.0)
            row += rows
    return np.array(blocks, np.int32).reshape(-1, 4), np.array(masses, np.float32)


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
