"""Turns a step's schedule into the flat batch that the model computes: one [T] row of tokens for all sequences."""

from collections.abc import Iterator
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
        sample_rows: [S] int64, the rows whose logits are sampled, in the order of `sampled`.
        sampled: the sequences that get a new token.
        spans: whose rows they are, in order: decodes by context length, then chunks of prompts, then the sparse ones.
    """

    input_ids: Tensor
    positions: Tensor
    sample_rows: Tensor
    sampled: list[Sequence]
    spans: list[Span]


def build_batch(output: SchedulerOutput, device: torch.device) -> Batch:
    """Lay out `output` row by row."""
    pieces = [(item, span) for item in output.scheduled for span in _spans(item)]
    pieces.sort(key=lambda piece: _order(piece[1]))
    input_ids: list[int] = []
    positions: list[int] = []
    sample_rows: list[int] = []
    sampled: list[Sequence] = []
    for item, span in pieces:
        seq = item.seq
        input_ids += seq.token_ids[span.first_position : span.context_len]
        positions += range(span.first_position, span.context_len)
        if item.samples and span.context_len == seq.num_tokens:
            sample_rows.append(len(input_ids) - 1)
            sampled.append(seq)
    return Batch(
        input_ids=torch.tensor([input_ids], device=device),
        positions=torch.tensor([positions], device=device),
        sample_rows=torch.tensor(sample_rows, dtype=torch.long, device=device),
        sampled=sampled,
        spans=[span for _, span in pieces],
    )


def _order(span: Span) -> tuple[int, int]:
    if span.is_decode:
        return 0, span.first_position
    return (2 if span.is_sparse_prompt else 1), 0


def _spans(item: ScheduledSequence) -> Iterator[Span]:
    """A sequence's rows: one span, or two where its prompt's dense beginning ends in this chunk.

    The last token of a dense prompt may be a chunk of its own, and is attended to as densely as the rest.
    """
    seq, start = item.seq, item.seq.num_computed_tokens
    stop, asked = start + item.num_new_tokens, item.seq.sparse_attention
    if item.num_new_tokens == 1 and start >= seq.num_prompt_tokens:
        is_sparse = asked is not None and asked.mass < 1 and start + 1 >= asked.min_context
        yield Span(seq.block_table, start, 1, asked.mass if asked and is_sparse else None)
        return
    first = seq.first_sparse_position
    dense_stop = stop if first is None else min(max(first, start), stop)
    if start < dense_stop:
        yield Span(seq.block_table, start, dense_stop - start)
    if dense_stop < stop:
        assert asked is not None
        yield Span(seq.block_table, dense_stop, stop - dense_stop, asked.prompt_mass, is_prompt=True)
