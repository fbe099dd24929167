"""Turns a step's schedule into the flat batch that the model computes: one [T] row of tokens for all sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.cpu.paged_attention import (
    IN_PLACE_KEYS,
    AttentionMetadata,
    DecodeGroup,
    KeySpan,
    PrefillSpan,
    padded_keys,
)
from .block_manager import NULL_BLOCK
from .scheduler import ScheduledSequence, SchedulerOutput
from .sequence import Sequence

# Another group costs about 60 us a layer in dispatches; an extra tile 15 us in copying (measured, 2 KV heads of 64).
MOST_PADDED = 4


@dataclass(slots=True)
class Batch:
    """What one forward pass needs.

    Attributes:
        input_ids, positions: [1, T] int64.
        sample_rows: [S] int64, the rows whose logits are sampled, in the order of `sampled`.
        sampled: the sequences that get a new token.
        fresh_blocks: blocks first written in this step, and not to their end.
    """

    input_ids: Tensor
    positions: Tensor
    sample_rows: Tensor
    sampled: list[Sequence]
    fresh_blocks: list[int]
    attention: AttentionMetadata


def build_batch(output: SchedulerOutput, block_size: int) -> Batch:
    """Lay out `output` row by row: decodes grouped by padded context length, then prefill chunks."""
    decodes = sorted(
        (item for item in output.scheduled if item.num_new_tokens == 1),
        key=lambda item: item.seq.num_computed_tokens,
    )
    prefills = [item for item in output.scheduled if item.num_new_tokens > 1]
    input_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sample_rows: list[int] = []
    sampled: list[Sequence] = []
    fresh_blocks: list[int] = []
    for item in (*decodes, *prefills):
        seq, start = item.seq, item.seq.num_computed_tokens
        stop = start + item.num_new_tokens
        input_ids += seq.token_ids[start:stop]
        positions += range(start, stop)
        table = seq.block_table
        slots += [
            table[position // block_size] * block_size + position % block_size
            for position in range(start, stop)
        ]
        if stop % block_size and start <= stop - stop % block_size:
            fresh_blocks.append(table[stop // block_size])
        if item.samples:
            sample_rows.append(len(input_ids) - 1)
            sampled.append(seq)
    return Batch(
        input_ids=torch.tensor([input_ids]),
        positions=torch.tensor([positions]),
        sample_rows=torch.tensor(sample_rows, dtype=torch.long),
        sampled=sampled,
        fresh_blocks=fresh_blocks,
        attention=AttentionMetadata(
            slot_mapping=torch.tensor(slots),
            decodes=_decode_groups(decodes, block_size),
            prefills=_prefill_spans(prefills, len(decodes), block_size),
            block_size=block_size,
        ),
    )


def _decode_groups(decodes: list[ScheduledSequence], block_size: int) -> list[DecodeGroup]:
    """Neighbours in length share one gathered, padded product; a long contiguous context stands alone, unread twice."""
    groups: list[DecodeGroup] = []
    members: list[Sequence] = []
    start = 0
    first_len = 0

    def close() -> None:
        nonlocal start
        if not members:
            return
        num_keys = padded_keys(members[-1].num_computed_tokens + 1)
        lens = torch.tensor([seq.num_computed_tokens + 1 for seq in members])
        groups.append(DecodeGroup(start, len(members), lens, _key_span(members, num_keys, block_size)))
        start += len(members)
        members.clear()

    for item in decodes:
        num_keys = padded_keys(item.seq.num_computed_tokens + 1)
        alone = num_keys >= IN_PLACE_KEYS and _is_contiguous(item.seq.block_table)
        longer = bool(members) and num_keys > padded_keys(members[-1].num_computed_tokens + 1)
        # Padding a few shorter contexts to the next longer one's tiles costs less than another round of dispatches.
        if alone or (longer and (len(members) > MOST_PADDED or num_keys > 2 * padded_keys(first_len))):
            close()
        if not members:
            first_len = item.seq.num_computed_tokens + 1
        members.append(item.seq)
        if alone:
            close()
    close()
    return groups


def _prefill_spans(prefills: list[ScheduledSequence], row: int, block_size: int) -> list[PrefillSpan]:
    spans = []
    for item in prefills:
        first = item.seq.num_computed_tokens
        num_keys = padded_keys(first + item.num_new_tokens)
        spans.append(
            PrefillSpan(row, item.num_new_tokens, first, _key_span([item.seq], num_keys, block_size))
        )
        row += item.num_new_tokens
    return spans


def _key_span(seqs: list[Sequence], num_keys: int, block_size: int) -> KeySpan:
    if len(seqs) == 1 and _is_contiguous(seqs[0].block_table):
        table = seqs[0].block_table
        return KeySpan(num_keys, first_slot=table[0] * block_size, num_own_keys=len(table) * block_size)
    num_blocks = num_keys // block_size
    block_ids: list[int] = []
    for seq in seqs:
        used = seq.block_table[:num_blocks]
        block_ids += used
        block_ids += [NULL_BLOCK] * (num_blocks - len(used))
    return KeySpan(num_keys, block_ids=torch.tensor(block_ids))


def _is_contiguous(table: list[int]) -> bool:
    return table == list(range(table[0], table[0] + len(table)))
