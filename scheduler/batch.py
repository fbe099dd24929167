"""Turns a step's schedule into the flat batch that the model computes: one [T] row of tokens for all sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.span import Span
from .scheduler import ScheduledSequence, SchedulerOutput
from .sequence import Sequence


@dataclass(slots=True)
class Batch:
    """What one forward pass needs.

    Attributes:
        input_ids, positions: [1, T] int64.
        sample_rows: [S] int64, the rows whose logits are sampled: of each sequence in `due` that of its last token, then
            those of its draft.
        due: the sequences that get new tokens.
        spans: whose rows they are, in order: single rows by context length, then longer runs.
    """

    input_ids: Tensor
    positions: Tensor
    sample_rows: Tensor
    due: list[ScheduledSequence]
    spans: list[Span]


def build_batch(output: SchedulerOutput, device: torch.device, *, drafts_as_decodes: bool = False) -> Batch:
    """Lay out `output` row by row.

    `drafts_as_decodes`: the rows that verify a draft are spans of their own, one by one, because the machine's attention
    gives a decode and a row within a run results that differ in the last bits.
    """
    pieces = [
        (span, item)
        for item in output.scheduled
        for span in _spans(item, drafts_as_decodes=drafts_as_decodes)
    ]
    pieces.sort(key=lambda piece: (piece[0].num_tokens > 1, piece[1].seq.num_computed_tokens))
    input_ids: list[int] = []
    positions: list[int] = []
    sampled: dict[int, list[tuple[int, int]]] = {id(item): [] for item in output.scheduled if item.samples}
    for span, item in pieces:
        seq, start, stop = item.seq, span.first_position, span.context_len
        if id(item) in sampled:
            first = max(start, seq.num_tokens - 1)
            row = len(input_ids) + first - start
            sampled[id(item)] += zip(range(first, stop), range(row, row + stop - first), strict=True)
        input_ids += seq.token_ids[start:stop]
        if stop > seq.num_tokens:
            input_ids += item.draft[max(0, start - seq.num_tokens) : stop - seq.num_tokens]
        positions += range(start, stop)
    due = [item for item in output.scheduled if item.samples]
    sample_rows = [row for item in due for _, row in sorted(sampled[id(item)])]
    return Batch(
        input_ids=torch.tensor([input_ids], device=device),
        positions=torch.tensor([positions], device=device),
        sample_rows=torch.tensor(sample_rows, dtype=torch.long, device=device),
        due=due,
        spans=[span for span, _ in pieces],
    )


def _spans(item: ScheduledSequence, *, drafts_as_decodes: bool) -> list[Span]:
    """The rows of one sequence. What is decoded sparsely stands alone, also in a draft that is verified."""
    table, start, count = item.seq.block_table, item.seq.num_computed_tokens, item.num_rows
    if item.num_new_tokens > 1:
        return [Span(table, start, count)]
    masses = [_sparse_mass(item.seq, position) for position in range(start, start + count)]
    # From some position on all are sparse.
    dense = 0 if drafts_as_decodes else next((i for i, mass in enumerate(masses) if mass is not None), count)
    spans = [Span(table, start, dense)] if dense else []
    return spans + [Span(table, start + i, 1, masses[i]) for i in range(dense, count)]


def _sparse_mass(seq: Sequence, position: int) -> float | None:
    """Prompts are attended to densely, in whatever chunks; their last token too, which may be a chunk of its own."""
    asked = seq.sparse_attention
    if asked is None or position < seq.num_prompt_tokens:
        return None
    return asked.mass if position + 1 >= asked.min_context else None
