"""Paged attention with torch's operators agrees with float64, and gives a row the same bits whatever it is computed with."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from penstock.kernels.cpu.paged_attention import (
    KEY_TILE,
    AttentionMetadata,
    DecodeGroup,
    KeySpan,
    PrefillSpan,
    padded_keys,
    paged_attention,
    store_kv,
)
from penstock.kernels.reference.paged_attention import paged_attention_reference

BLOCK = 32
EDGES = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300]
STALE = 3e18  # large and finite: what memory of a former owner may hold at worst


@dataclass
class Pool:
    """K and V of several sequences in blocks, contiguous or scattered; all the rest is stale garbage."""

    keys: torch.Tensor
    values: torch.Tensor
    tables: list[list[int]]
    lengths: list[int]

    def slots(self, seq: int) -> list[int]:
        return [self.tables[seq][p // BLOCK] * BLOCK + p % BLOCK for p in range(self.lengths[seq])]

    def span(self, seqs: list[int], num_keys: int, *, in_place: bool) -> KeySpan:
        if in_place:
            (seq,) = seqs
            assert self.tables[seq] == list(
                range(self.tables[seq][0], self.tables[seq][0] + len(self.tables[seq]))
            )
            own = len(self.tables[seq]) * BLOCK
            return KeySpan(num_keys, first_slot=self.tables[seq][0] * BLOCK, num_own_keys=own)
        count = num_keys // BLOCK
        block_ids = [(self.tables[seq] + [0] * count)[:count] for seq in seqs]
        return KeySpan(
            num_keys, block_ids=torch.tensor([block_id for table in block_ids for block_id in table])
        )


def make_pool(
    lengths: list[int],
    *,
    kv_heads: int = 2,
    dim: int = 64,
    value_dim: int | None = None,
    contiguous: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Pool:
    counts = [-(-length // BLOCK) for length in lengths]
    num_blocks = sum(counts) + 3
    order = list(range(1, num_blocks)) if contiguous else (torch.randperm(num_blocks - 1) + 1).tolist()
    tables, used = [], 0
    for count in counts:
        tables.append(order[used : used + count])
        used += count
    num_slots = num_blocks * BLOCK + KEY_TILE
    signs = torch.where(torch.rand(kv_heads, num_slots, 1) < 0.5, -STALE, STALE).to(dtype)
    pool = Pool(
        signs.expand(-1, -1, dim).clone(), signs.expand(-1, -1, value_dim or dim).clone(), tables, lengths
    )
    pool.keys[:, :BLOCK], pool.values[:, :BLOCK] = 0, 0  # the null block, never written
    for seq, length in enumerate(lengths):
        store_kv(
            torch.randn(kv_heads, length, dim).to(dtype),
            torch.randn(kv_heads, length, value_dim or dim).to(dtype),
            pool.keys,
            pool.values,
            torch.tensor(pool.slots(seq)),
        )
    return pool


def prefill(pool: Pool, query: torch.Tensor, seq: int, first: int, last: int, *, in_place: bool, **kwargs):
    """Rows [first, last) of a sequence as one chunk; `query` is [H, length, D] -> [last - first, H, Dv]."""
    num_keys = padded_keys(last)
    span = PrefillSpan(0, last - first, first, pool.span([seq], num_keys, in_place=in_place))
    metadata = AttentionMetadata(torch.empty(0, dtype=torch.long), None, [], [span], BLOCK)
    return paged_attention(query[:, first:last], pool.keys, pool.values, metadata, **kwargs)


def decode(
    pool: Pool, query: torch.Tensor, seqs: list[int], lens: list[int], *, in_place: bool = False, **kwargs
):
    """One row per sequence, of these context lengths, as one group; `query` is [H, B, D] -> [B, H, Dv]."""
    num_keys = padded_keys(max(lens))
    group = DecodeGroup(0, len(seqs), torch.tensor(lens), pool.span(seqs, num_keys, in_place=in_place))
    metadata = AttentionMetadata(torch.empty(0, dtype=torch.long), None, [group], [], BLOCK)
    return paged_attention(query, pool.keys, pool.values, metadata, **kwargs)


def reference(pool: Pool, query: torch.Tensor, seq: int, first: int, last: int, **kwargs) -> torch.Tensor:
    slots = pool.slots(seq)
    visible = [slots[: row + 1] for row in range(first, last)]
    return paged_attention_reference(query[:, first:last], pool.keys, pool.values, visible, **kwargs)


def assert_close(out: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert torch.isfinite(out).all()
    error = ((out.double() - expected).norm() / expected.norm()).item()
    assert error < tolerance, error


VARIANTS = {
    "plain": {},
    "window": {"sliding_window": 20},
    "window of one": {"sliding_window": 1},
    "window of a tile": {"sliding_window": 128},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": True},
    "all": {"sliding_window": 40, "softcap": 4.0, "sinks": True},
}


def variant(name: str, heads: int) -> dict:
    kwargs = dict(VARIANTS[name])
    if kwargs.get("sinks"):
        kwargs["sinks"] = torch.randn(heads) * 2
    return kwargs


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_prefill_and_decode_over_head_shapes(groups: int, dim: int):
    torch.manual_seed(groups * dim)
    heads = 2 * groups
    lengths = [33, 130, 5]
    pool = make_pool(lengths, dim=dim)
    queries = [torch.randn(heads, length, dim) for length in lengths]
    for seq, length in enumerate(lengths):
        for first in (0, length // 2):
            out = prefill(pool, queries[seq], seq, first, length, in_place=False, scaling=dim**-0.5)
            assert_close(out, reference(pool, queries[seq], seq, first, length, scaling=dim**-0.5))
    last = torch.stack([query[:, -1] for query in queries], dim=1)
    out = decode(pool, last, [0, 1, 2], lengths, scaling=dim**-0.5)
    for seq, length in enumerate(lengths):
        assert_close(
            out[seq : seq + 1], reference(pool, queries[seq], seq, length - 1, length, scaling=dim**-0.5)
        )


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("contiguous", [False, True], ids=["scattered", "contiguous"])
def test_every_length_around_a_boundary(name: str, contiguous: bool):
    torch.manual_seed(5)
    heads = 4
    kwargs = variant(name, heads) | {"scaling": 0.125}
    pool = make_pool(EDGES, contiguous=contiguous)
    for seq, length in enumerate(EDGES):
        query = torch.randn(heads, length, 64)
        first = max(0, length - 3)
        expected = reference(pool, query, seq, first, length, **kwargs)
        for in_place in {False, contiguous}:
            assert_close(prefill(pool, query, seq, first, length, in_place=in_place, **kwargs), expected)
            out = decode(pool, query[:, -1:], [seq], [length], in_place=in_place, **kwargs)
            assert_close(out, expected[-1:])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_has_the_same_bits_however_it_is_computed(name: str):
    """Alone or in a group, in any chunk, gathered or in place: bit for bit, whatever the load."""
    torch.manual_seed(6)
    heads, lengths = 4, [300, 40, 150, 1, 129]
    kwargs = variant(name, heads) | {"scaling": 0.125}
    pool = make_pool(lengths, contiguous=True)
    queries = [torch.randn(heads, length, 64) for length in lengths]
    whole = [
        prefill(pool, queries[seq], seq, 0, length, in_place=False, **kwargs)
        for seq, length in enumerate(lengths)
    ]
    for seq, length in enumerate(lengths):
        for size, in_place in itertools.product((1, 2, 3, 5, 7, 32, 100, 128, 129), (False, True)):
            chunks = [
                prefill(
                    pool, queries[seq], seq, first, min(first + size, length), in_place=in_place, **kwargs
                )
                for first in range(0, length, size)
                if size > 2 or first % 37 == 0
            ]
            rows = [row for row in range(length) if size > 2 or (row - row % size) % 37 == 0]
            assert torch.equal(torch.cat(chunks), whole[seq][rows]), (seq, size, in_place)
    for lens in ([300, 40, 150, 1, 129], [128, 40, 127, 1, 129], [1, 1, 1, 1, 1], [257, 33, 64, 1, 65]):
        for seqs in ([0, 1, 2, 3, 4], [4, 0], [2], [3, 1]):
            query = torch.stack([queries[seq][:, lens[seq] - 1] for seq in seqs], dim=1)
            out = decode(pool, query, seqs, [lens[seq] for seq in seqs], **kwargs)
            for row, seq in enumerate(seqs):
                assert torch.equal(out[row], whole[seq][lens[seq] - 1]), (lens, seqs)
        for seq in range(5):
            query = queries[seq][:, lens[seq] - 1 : lens[seq]]
            out = decode(pool, query, [seq], [lens[seq]], in_place=True, **kwargs)
            assert torch.equal(out[0], whole[seq][lens[seq] - 1]), (lens, seq)


@pytest.mark.parametrize(("groups", "dim"), [(1, 80), (8, 64), (7, 128), (4, 256), (3, 16)])
def test_bits_do_not_depend_on_the_batch_for_other_head_shapes(groups: int, dim: int):
    torch.manual_seed(7)
    heads, lengths = groups * 2, [200, 30, 131]
    pool = make_pool(lengths, dim=dim)
    queries = [torch.randn(heads, length, dim) for length in lengths]
    for seq, length in enumerate(lengths):
        whole = prefill(pool, queries[seq], seq, 0, length, in_place=False, scaling=0.1)
        for size in (3, 50):
            chunks = [
                prefill(
                    pool, queries[seq], seq, first, min(first + size, length), in_place=False, scaling=0.1
                )
                for first in range(0, length, size)
            ]
            assert torch.equal(torch.cat(chunks), whole)
        mates = [seq, *(other for other in range(3) if other != seq)]
        query = torch.stack([queries[mate][:, -1] for mate in mates], dim=1)
        assert torch.equal(decode(pool, query, mates, [lengths[m] for m in mates], scaling=0.1)[0], whole[-1])
        assert torch.equal(decode(pool, query[:, :1], [seq], [length], scaling=0.1)[0], whole[-1])


def test_values_may_have_another_size_than_keys():
    torch.manual_seed(8)
    pool = make_pool([50], dim=96, value_dim=64)
    query = torch.randn(4, 50, 96)
    out = prefill(pool, query, 0, 10, 50, in_place=False, scaling=0.1)
    assert out.shape == (40, 4, 64)
    assert_close(out, reference(pool, query, 0, 10, 50, scaling=0.1))


def test_a_mixed_batch_fills_every_row():
    """Decode groups and prefills in one call, each row where it belongs."""
    torch.manual_seed(9)
    lengths, heads = [40, 7, 200], 4
    pool = make_pool(lengths)
    queries = [torch.randn(heads, length, 64) for length in lengths]
    flat = torch.cat([queries[0][:, -1:], queries[1][:, -1:], queries[2][:, 100:]], dim=1)
    metadata = AttentionMetadata(
        torch.empty(0, dtype=torch.long),
        None,
        [DecodeGroup(0, 2, torch.tensor([40, 7]), pool.span([0, 1], KEY_TILE, in_place=False))],
        [PrefillSpan(2, 100, 100, pool.span([2], padded_keys(200), in_place=False))],
        BLOCK,
    )
    out = paged_attention(flat, pool.keys, pool.values, metadata, scaling=0.125)
    assert_close(out[:1], reference(pool, queries[0], 0, 39, 40, scaling=0.125))
    assert_close(out[1:2], reference(pool, queries[1], 1, 6, 7, scaling=0.125))
    assert_close(out[2:], reference(pool, queries[2], 2, 100, 200, scaling=0.125))
    # The masks are kept for the next layer, which may have another window.
    out = paged_attention(flat, pool.keys, pool.values, metadata, scaling=0.125, sliding_window=10)
    assert_close(out[2:], reference(pool, queries[2], 2, 100, 200, scaling=0.125, sliding_window=10))
    again = paged_attention(flat, pool.keys, pool.values, metadata, scaling=0.125)
    assert_close(again[2:], reference(pool, queries[2], 2, 100, 200, scaling=0.125))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype):
    torch.manual_seed(10)
    pool = make_pool([150, 20], dtype=dtype)
    pool.keys.clamp_(-1e4, 1e4)
    pool.values.clamp_(-1e4, 1e4)
    query = torch.randn(4, 150, 64).to(dtype)
    expected = reference(pool, query, 0, 0, 150, scaling=0.125)
    for sinks in (None, torch.randn(4)):
        expected = reference(pool, query, 0, 0, 150, scaling=0.125, sinks=sinks)
        out = prefill(pool, query, 0, 0, 150, in_place=False, scaling=0.125, sinks=sinks)
        assert out.dtype == dtype
        assert_close(out, expected, 2e-2)


def test_extreme_scores_stay_finite():
    torch.manual_seed(11)
    pool = make_pool([140])
    query = torch.randn(4, 140, 64) * 1e4
    assert_close(
        prefill(pool, query, 0, 0, 140, in_place=False, scaling=1.0),
        reference(pool, query, 0, 0, 140, scaling=1.0),
        1e-3,
    )


@pytest.mark.parametrize("length", [5, 33, 100, 140, 300])
def test_a_neighbours_nan_is_not_read(length: int):
    """In place, whole tiles reach into the blocks of whoever lies behind, broken in this very step."""
    torch.manual_seed(12)
    pool = make_pool([length, 200], contiguous=True)
    query = torch.randn(4, length, 64)
    kwargs = {"scaling": 0.125, "softcap": 5.0, "sinks": torch.randn(4)}
    clean = prefill(pool, query, 0, 0, length, in_place=True, **kwargs)
    for slots in (pool.keys, pool.values):
        slots[:, torch.tensor(pool.slots(1))] = float("nan")
    assert torch.equal(prefill(pool, query, 0, 0, length, in_place=True, **kwargs), clean)
    last = decode(pool, query[:, -1:], [0], [length], in_place=True, **kwargs)
    assert torch.equal(last[0], clean[-1])
