"""Batches of decodes laid out with room: other contents in the same memory give the bits of a batch of their own."""

import pytest
import torch
from paged_pool import PagedPool

from penstock.kernels.gpu.paged_attention import paged_attention
from penstock.kernels.gpu.paged_batch import PagedBatch
from penstock.kernels.gpu.store_kv import MEAN_STD, store_kv
from penstock.kernels.span import NULL_BLOCK, Span

NOBODY = Span([NULL_BLOCK], 0, 1)


def spans_of(pool: PagedPool, rows: list[int]) -> list[Span]:
    return [Span(pool.tables[row], *pool.sequences[row]) for row in rows]


@pytest.mark.parametrize("int8", [False, True])
def test_decodes_of_one_step_in_the_memory_of_another(int8, device):
    """A context of one split and one of two, and a row of nobody; the first step has other lengths in other pages."""
    pool = PagedPool([(5, 1), (600, 1), (63, 1), (511, 1)], device, int8=int8).fill()
    fixed = PagedBatch.build([*spans_of(pool, [2, 3]), NOBODY], pool.pages.device, context_room=1024)
    spans = [*spans_of(pool, [0, 1]), NOBODY]
    fixed.packed.copy_(PagedBatch.build(spans, pool.pages.device, context_room=1024).packed)
    query = torch.cat([pool.queries[0], pool.queries[1], pool.queries[0]])
    own = PagedBatch.build(spans[:2], pool.pages.device)
    found = paged_attention(query, pool.pages, pool.scales, fixed, scaling=0.1).out
    expected = paged_attention(query[:2], pool.pages, pool.scales, own, scaling=0.1).out
    assert torch.equal(found[:2], expected)
    short = PagedBatch.build(spans[:1], pool.pages.device, context_room=512)
    alone = paged_attention(query[:1], pool.pages, pool.scales, short, scaling=0.1).out
    assert torch.equal(found[:1], alone)


def test_rows_of_one_granule_are_stored_once_and_those_of_nobody_nowhere_else(device):
    """A sequence with a draft: three rows, one granule, and the places of the other two granules empty."""
    pool = PagedPool([(40, 3), (17, 1)], device, formula=MEAN_STD).fill()
    table = pool.tables[0]
    spans = [Span(table, position, 1) for position in (40, 41, 42)] + spans_of(pool, [1]) + [NOBODY] * 4
    key, value = torch.randn(2, len(spans), 2, 64, device=device)
    stored = []
    for room in (None, 512):
        pages, summaries = pool.pages.clone(), pool.summaries.clone()
        batch = PagedBatch.build(spans, pages.device, context_room=room)
        store_kv(key, value, pages, None, summaries, batch, formula=MEAN_STD)
        stored.append((pages, summaries))
    assert batch.granules.shape == (8, 4)
    used = [own for table in pool.tables for own in table]
    for plain, fixed in zip(*stored, strict=True):
        assert torch.equal(plain[used].nan_to_num(7.0), fixed[used].nan_to_num(7.0))
    assert not torch.equal(plain[used].nan_to_num(7.0), pool.summaries[used].nan_to_num(7.0))
