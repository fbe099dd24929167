"""Lays a step's spans out for attention on a CPU: which rows share a product, and where their keys lie."""

from collections.abc import Sequence

import torch

from ..span import NULL_BLOCK, PROMPT_BLOCK, Span
from .native.attention import native_spans
from .paged_attention import (
    IN_PLACE_KEYS,
    AttentionMetadata,
    DecodeGroup,
    KeySpan,
    PrefillSpan,
    padded_keys,
)

# Another group costs about 60 us a layer in dispatches; an extra tile 15 us in copying (measured, 2 KV heads of 64).
MOST_PADDED = 4


def attention_batch(spans: Sequence[Span], block_size: int, *, native: bool = False) -> AttentionMetadata:
    """`spans` in the order of their rows: first the decodes, by context length, then the others.

    `native`: the C library attends to what is dense.
    """
    slots: list[int] = []
    rows: list[tuple[int, Span]] = []
    for span in spans:
        rows.append((len(slots), span))
        table = span.block_table
        slots += [
            table[position // block_size] * block_size + position % block_size
            for position in range(span.first_position, span.context_len)
        ]
    dense = None
    if native:
        dense = native_spans([(row, span) for row, span in rows if _is_dense(span)], block_size)
        rows = [(row, span) for row, span in rows if not _is_dense(span)]
    num_decodes = next((i for i, (_, span) in enumerate(rows) if not span.is_decode), len(rows))
    return AttentionMetadata(
        slot_mapping=torch.tensor(slots),
        dense=dense,
        decodes=_decode_groups(rows[:num_decodes], block_size),
        prefills=_prefill_spans(rows[num_decodes:], block_size),
        block_size=block_size,
    )


def _is_dense(span: Span) -> bool:
    """All of the mass is all keys."""
    return span.sparse_mass is None or (span.sparse_mass == 1 and not span.is_prompt)


def fresh_blocks(spans: Sequence[Span], block_size: int) -> list[int]:
    """Blocks first written in this step, and not to their end."""
    return [
        span.block_table[span.context_len // block_size]
        for span in spans
        if span.context_len % block_size
        and span.first_position <= span.context_len - span.context_len % block_size
    ]


def _decode_groups(decodes: Sequence[tuple[int, Span]], block_size: int) -> list[DecodeGroup]:
    """Neighbours in length share one gathered, padded product; a long contiguous context stands alone, unread twice."""
    groups: list[DecodeGroup] = []
    members: list[Span] = []
    start = 0

    def close() -> None:
        if not members:
            return
        lens = torch.tensor([span.context_len for span in members])
        keys = _key_span(members, padded_keys(members[-1].context_len), block_size)
        groups.append(DecodeGroup(start, len(members), lens, keys, members[0].sparse_mass))
        members.clear()

    for row, span in decodes:
        num_keys = padded_keys(span.context_len)
        in_place = num_keys >= IN_PLACE_KEYS and _is_contiguous(span.block_table)
        alone = in_place or span.sparse_mass is not None
        longer = bool(members) and num_keys > padded_keys(members[-1].context_len)
        # Padding a few shorter contexts to the next longer one's tiles costs less than another round of dispatches.
        if alone or (
            longer and (len(members) > MOST_PADDED or num_keys > 2 * padded_keys(members[0].context_len))
        ):
            close()
        if not members:
            start = row
        members.append(span)
        if alone:
            close()
    close()
    return groups


def _prefill_spans(prefills: Sequence[tuple[int, Span]], block_size: int) -> list[PrefillSpan]:
    spans = []
    for row, span in prefills:
        keys = _key_span([span], padded_keys(span.context_len), block_size)
        mass = None
        if span.is_sparse_prompt:
            assert span.first_position % PROMPT_BLOCK == 0, "a block of a sparse prompt is cut"
            mass = span.sparse_mass
        spans.append(PrefillSpan(row, span.num_tokens, span.first_position, keys, mass))
    return spans


def _key_span(spans: list[Span], num_keys: int, block_size: int) -> KeySpan:
    if len(spans) == 1 and _is_contiguous(spans[0].block_table):
        table = spans[0].block_table
        return KeySpan(num_keys, first_slot=table[0] * block_size, num_own_keys=len(table) * block_size)
    num_blocks = num_keys // block_size
    block_ids: list[int] = []
    for span in spans:
        used = span.block_table[:num_blocks]
        block_ids += used
        block_ids += [NULL_BLOCK] * (num_blocks - len(used))
    return KeySpan(num_keys, block_ids=torch.tensor(block_ids))


def _is_contiguous(table: list[int]) -> bool:
    return table == list(range(table[0], table[0] + len(table)))
