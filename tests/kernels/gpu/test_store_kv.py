"""Keys and values land in their pages and nowhere else; summaries are those of the stored keys."""

import pytest
import torch

from penstock.kernels.gpu.paged_batch import PagedBatch
from penstock.kernels.gpu.store_kv import MEAN_STD, MIN_MAX, store_kv
from penstock.kernels.reference.store_kv import store_kv_reference, summary_reference
from penstock.kernels.span import Span

PAGES, HEADS = 9, 2


class Pool:
    def __init__(self, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        int8 = dtype is torch.int8
        shape = (PAGES, HEADS, 2, 64, head_dim)
        self.pages = (
            torch.full(shape, 99, dtype=dtype, device=device)
            if int8
            else torch.full(shape, float("nan"), dtype=dtype, device=device)
        )
        self.scales = torch.full(shape[:-1], float("nan"), device=device) if int8 else None
        summary_dtype = torch.float32 if int8 else dtype
        self.summaries = torch.full(
            (PAGES, HEADS, 4, 2, head_dim), float("nan"), dtype=summary_dtype, device=device
        )

    def stored_keys(self, slots: list[int]) -> torch.Tensor:
        pages, places = torch.tensor(slots) // 64, torch.tensor(slots) % 64
        keys = self.pages[pages, :, 0, places].float()
        return keys if self.scales is None else keys * self.scales[pages, :, 0, places][..., None]


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(((a == b) | (a.isnan() & b.isnan() if a.is_floating_point() else a == b)).all())


# Steps of (table, tokens) per sequence: decode over every boundary, chunks that begin and end anywhere.
STEPS = [
    [([3], 1), ([5, 2], 63), ([7, 1], 66)],
    [([3], 1), ([5, 2], 1), ([7, 1], 30)],
    [([3], 1), ([5, 2], 1), ([7, 1], 17)],
    [([3], 13), ([5, 2], 40)],
    [([3], 1), ([5, 2], 1)],
]


@pytest.mark.parametrize("formula", [MIN_MAX, MEAN_STD])
@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [
        (torch.float32, 64),
        (torch.float16, 80),
        (torch.bfloat16, 128),
        (torch.int8, 64),
        (torch.int8, 96),
    ],
    ids=str,
)
def test_steps_of_decodes_and_chunks(dtype, head_dim, formula, device):
    pool, expected = Pool(head_dim, dtype, device), Pool(head_dim, dtype, device)
    lens: dict[int, int] = {}
    tables: dict[int, list[int]] = {}
    kind = torch.float32 if dtype is torch.int8 else dtype
    for step in STEPS:
        step = sorted(step, key=lambda item: item[1] > 1)
        spans = [Span(table, lens.get(table[0], 0), tokens) for table, tokens in step]
        total = sum(tokens for _, tokens in step)
        # As transformers gives them: heads outside, rows inside.
        key, value = (
            torch.randn(HEADS, total, head_dim, device=device).to(kind).transpose(0, 1) for _ in "kv"
        )
        store_kv(
            key,
            value,
            pool.pages,
            pool.scales,
            pool.summaries,
            PagedBatch.build(spans, device),
            formula=formula,
        )
        slots = [
            span.block_table[position // 64] * 64 + position % 64
            for span in spans
            for position in range(span.first_position, span.context_len)
        ]
        store_kv_reference(key, value, expected.pages, expected.scales, slots)
        for table, tokens in step:
            lens[table[0]] = lens.get(table[0], 0) + tokens
            tables[table[0]] = table
    assert same(pool.pages, expected.pages) and same(pool.scales, expected.scales)
    seen = torch.zeros(PAGES, 4, dtype=torch.bool)
    for first, length in lens.items():
        for start in range(0, length, 16):
            slots = [tables[first][p // 64] * 64 + p % 64 for p in range(start, min(start + 16, length))]
            wanted = summary_reference(pool.stored_keys(slots), mean_std=formula == MEAN_STD)
            page, number = slots[0] // 64, slots[0] % 64 // 16
            seen[page, number] = True
            found = pool.summaries[page, :, number].double()
            tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(kind, 1e-6)
            if formula == MIN_MAX and dtype is not torch.int8:
                assert torch.equal(found, wanted)
            assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)
    assert pool.summaries.transpose(1, 2)[~seen.to(device)].isnan().all(), (
        "summaries of untouched granules stay as they are"
    )


def test_without_summaries_and_without_rows(device):
    pool = Pool(64, torch.float32, device)
    batch = PagedBatch.build([Span([4], 0, 1)], device)
    key = torch.randn(1, HEADS, 64, device=device)
    store_kv(key, key, pool.pages, None, None, batch)
    assert torch.equal(pool.pages[4, :, 0, 0], key[0]) and pool.summaries.isnan().all()
    store_kv(key[:0], key[:0], pool.pages, None, None, PagedBatch.build([], device))


def test_what_does_not_fit_is_named(device):
    pool, batch = Pool(64, torch.int8, device), PagedBatch.build([Span([4], 0, 1)], device)
    key = torch.randn(1, HEADS, 64, device=device)
    with pytest.raises(ValueError, match="scales are for int8 pages"):
        store_kv(key, key, pool.pages, None, None, batch)
    with pytest.raises(ValueError, match=r"pages has shape .* it must be \[any, 3, 2, 64, 64\]"):
        wide = torch.randn(1, 3, 64, device=device)
        store_kv(wide, wide, pool.pages, pool.scales, None, batch)
