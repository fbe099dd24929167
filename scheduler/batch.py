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
        sample_rows: [S] int64, the rows whose logits are sampled, in the order of `sampled`.
        sampled: the sequences that get a new token.
        spans: whose rows they are, in order: decodes by context length, then prefill chunks.
    """

    input_ids: Tensor
    positions: Tensor
    sample_rows: Tensor
    sampled: list[Sequence]
    spans: list[Span]


def build_batch(output: SchedulerOutput, device: torch.device) -> Batch:
    """Lay out `output` row by row."""
    decodes = sorted(
        (item for item in output.scheduled if item.num_new_tokens == 1),
        key=lambda item: item.seq.num_computed_tokens,
    )
    prefills = [item for item in output.scheduled if item.num_new_tokens > 1]
    input_ids: list[int] = []
    positions: list[int] = []
    sample_rows: list[int] = []
    sampled: list[Sequence] = []
    spans: list[Span] = []
    for item in (*decodes, *prefills):
        seq, start = item.seq, item.seq.num_computed_tokens
        stop = start + item.num_new_tokens
        input_ids += seq.token_ids[start:stop]
        positions += range(start, stop)
        spans.append(Span(seq.block_table, start, item.num_new_tokens, _sparse_mass(item)))
        if item.samples:
            sample_rows.append(len(input_ids) - 1)
            sampled.append(seq)
    return Batch(
        input_ids=torch.tensor([input_ids], device=device),
        positions=torch.tensor([positions], device=device),
        sample_rows=torch.tensor(sample_rows, dtype=torch.long, device=device),
        sampled=sampled,
        spans=spans,
    )


def _sparse_mass(item: ScheduledSequence) -> float | None:
    """Prompts are attended to densely, in whatever chunks; their last token too, which may be a chunk of its own."""
    start, asked = item.seq.num_computed_tokens, item.seq.sparse_attention
    if asked is None or item.num_new_tokens > 1 or start < item.seq.num_prompt_tokens:
        return None
    return asked.mass if start + 1 >= asked.min_context else None
