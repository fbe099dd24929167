"""Turns a step's schedule into the flat batch that the model computes: one [T] row of tokens for all sequences."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels.span import Span
from ..kernels.transfer import upload
from .scheduler import ScheduledSequence, SchedulerOutput
from .sequence import Sequence


@dataclass(slots=True)
class Batch:
    """What one forward pass needs.

    Attributes:
        input_ids, positions: [1, T] int64.
        ahead: [2, A] int64: rows whose token is for the step before to tell, and which of its sampled ones it is; in
            `input_ids` they are UNKNOWN. None without any.
        sample_rows: [S] int64, the rows whose logits are sampled: of each sequence in `due` that of its last token, then
            those of its draft.
        due: the sequences that get new tokens.
        adapter_rows: [M] int64 by the name of an adapter: the rows that it is computed for.
        spans: whose rows they are, in order: single rows by context length, then longer runs, then those of sparse prompts.
    """

    input_ids: Tensor
    positions: Tensor
    ahead: Tensor | None
    sample_rows: Tensor
    due: list[ScheduledSequence]
    adapter_rows: dict[str, Tensor]
    spans: list[Span]


def build_batch(
    output: SchedulerOutput,
    device: torch.device,
    *,
    before: Mapping[Sequence, int],
    drafts_as_decodes: bool = False,
) -> Batch:
    """Lay out `output` row by row.

    `before`: in which place the step before samples the next token of a sequence.

    `drafts_as_decodes`: the rows that verify a draft are spans of their own, one by one, because the machine's attention
    gives a decode and a row within a run results that differ in the last bits.
    """
    pieces = [
        (span, item)
        for item in output.scheduled
        for span in _spans(item, drafts_as_decodes=drafts_as_decodes)
    ]
    pieces.sort(key=lambda piece: _order(*piece))
    input_ids: list[int] = []
    positions: list[int] = []
    adapter_rows: dict[str, list[int]] = {}
    ahead: list[tuple[int, int]] = []
    sampled: dict[int, list[tuple[int, int]]] = {id(item): [] for item in output.scheduled if item.samples}
    for span, item in pieces:
        seq, start, stop = item.seq, span.first_position, span.context_len
        if id(item) in sampled:
            first = max(start, seq.num_tokens - 1)
            row = len(input_ids) + first - start
            sampled[id(item)] += zip(range(first, stop), range(row, row + stop - first), strict=True)
            if item.is_ahead:
                ahead.append((row, before[seq]))
        input_ids += seq.token_ids[start:stop]
        if stop > seq.num_tokens:
            input_ids += item.draft[max(0, start - seq.num_tokens) : stop - seq.num_tokens]
        if seq.params.adapter is not None:
            adapter_rows.setdefault(seq.params.adapter, []).extend(
                range(len(positions), len(positions) + stop - start)
            )
        positions += range(start, stop)
    due = [item for item in output.scheduled if item.samples]
    sample_rows = [row for item in due for _, row in sorted(sampled[id(item)])]

    def integers(values: Any) -> Tensor:
        return upload(torch.tensor(values, dtype=torch.long), device)

    return Batch(
        input_ids=integers([input_ids]),
        positions=integers([positions]),
        ahead=integers(ahead).t() if ahead else None,
        sample_rows=integers(sample_rows),
        due=due,
        adapter_rows={name: integers(rows) for name, rows in adapter_rows.items()},
        spans=[span for span, _ in pieces],
    )


def _order(span: Span, item: ScheduledSequence) -> tuple[int, int]:
    if span.is_decode:
        return 0, item.start
    return (2 if span.is_sparse_prompt else 1), 0


def _spans(item: ScheduledSequence, *, drafts_as_decodes: bool) -> Iterator[Span]:
    """The rows of one sequence: a chunk of its prompt, in two where what is dense of it ends, or a decode and its draft."""
    seq, start, stop = item.seq, item.start, item.start + item.num_rows
    # A copy: the sequence's may grow or be given back while this step is computed.
    asked, table = seq.sparse_attention, seq.block_table.copy()
    if item.num_new_tokens > 1 or start < seq.num_prompt_tokens:
        # The last token of a prompt may be a chunk of its own, and is attended to as the rest.
        first = seq.first_sparse_position
        dense_stop = stop if first is None else min(max(first, start), stop)
        if start < dense_stop:
            yield Span(table, start, dense_stop - start)
        if dense_stop < stop:
            assert asked is not None
            yield Span(table, dense_stop, stop - dense_stop, asked.prompt_mass, is_prompt=True)
        return
    # From some position on, what is decoded is decoded sparsely, row by row.
    sparse = stop if asked is None or asked.mass == 1 else min(max(start, asked.min_context - 1), stop)
    if start < sparse and not drafts_as_decodes:
        yield Span(table, start, sparse - start)
        start = sparse
    for position in range(start, stop):
        yield Span(table, position, 1, asked.mass if asked is not None and position >= sparse else None)
