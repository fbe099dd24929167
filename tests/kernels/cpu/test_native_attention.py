"""Attention in C agrees with float64, reads nobody's keys but its own, and gives a row the same bits in any company."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from penstock.kernels.cpu.attention_batch import attention_batch
from penstock.kernels.cpu.native import library as native
from penstock.kernels.cpu.native.library import library
from penstock.kernels.cpu.paged_attention import paged_attention, store_kv
from penstock.kernels.reference.paged_attention import paged_attention_reference
from penstock.kernels.span import Span
from penstock.native_build import FLAGS, KERNEL_CHIPS

pytestmark = [
    pytest.mark.skipif(library() is None, reason="no compiler, or no AVX2"),
    pytest.mark.usefixtures("chip"),
]
EDGES = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300]


@dataclass
class Pool:
    """Sequences in scattered blocks of a pool that is NaN everywhere else."""

    keys: torch.Tensor
    values: torch.Tensor
    tables: list[list[int]]
    block_size: int

    def slots(self, seq: int, length: int) -> list[int]:
        size, table = self.block_size, self.tables[seq]
        return [table[p // size] * size + p % size for p in range(length)]


def make_pool(
    lengths: list[int],
    *,
    kv_heads: int = 2,
    dim: int = 64,
    value_dim: int | None = None,
    block_size: int = 32,
) -> Pool:
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts)).tolist()
    tables = [order[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]
    slots = sum(counts) * block_size
    pool = Pool(
        torch.full((kv_heads, slots, dim), float("nan")),
        torch.full((kv_heads, slots, value_dim or dim), float("nan")),
        tables,
        block_size,
    )
    for seq, length in enumerate(lengths):
        key, value = torch.randn(kv_heads, length, dim), torch.randn(kv_heads, length, value_dim or dim)
        store_kv(key, value, pool.keys, pool.values, torch.tensor(pool.slots(seq, length)))
    return pool


def attend(
    pool: Pool, queries: list[torch.Tensor], rows: list[tuple[int, int, int]], **kwargs: object
) -> list[torch.Tensor]:
    """`rows`: (sequence, first position, stop) of each span, all in one batch; queries [H, length, D] by sequence."""
    spans = [Span(pool.tables[seq], first, stop - first) for seq, first, stop in rows]
    flat = torch.cat([queries[seq][:, first:stop] for seq, first, stop in rows], dim=1)
    metadata = attention_batch(spans, pool.block_size, native=True)
    out = paged_attention(flat, pool.keys, pool.values, metadata, **kwargs)
    return list(out.split([stop - first for _, first, stop in rows]))


def reference(
    pool: Pool, query: torch.Tensor, seq: int, first: int, stop: int, **kwargs: object
) -> torch.Tensor:
    slots = pool.slots(seq, stop)
    visible = [slots[: row + 1] for row in range(first, stop)]
    return paged_attention_reference(query[:, first:stop], pool.keys, pool.values, visible, **kwargs)


def assert_close(out: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert torch.isfinite(out).all()
    assert ((out.double() - expected).norm() / expected.norm()).item() < tolerance


VARIANTS = {
    "plain": {},
    "window": {"sliding_window": 20},
    "window of one": {"sliding_window": 1},
    "window of two tiles": {"sliding_window": 128},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": True},
    "all": {"sliding_window": 40, "softcap": 4.0, "sinks": True},
}


def variant(name: str, heads: int) -> dict:
    kwargs = dict(VARIANTS[name]) | {"scaling": 0.125}
    if kwargs.get("sinks"):
        kwargs["sinks"] = torch.randn(heads) * 2
    return kwargs


@pytest.mark.parametrize("groups", [1, 3, 7, 71])
@pytest.mark.parametrize("dim", [1, 8, 20, 64, 80, 128, 256])
def test_head_shapes(groups: int, dim: int):
    torch.manual_seed(groups * dim)
    lengths = [33, 130, 5]
    pool = make_pool(lengths, dim=dim, value_dim=max(dim - 3, 1))
    queries = [torch.randn(2 * groups, length, dim) for length in lengths]
    rows = [(0, 32, 33), (1, 60, 130), (2, 0, 5)]
    outs = attend(pool, queries, rows, scaling=dim**-0.5)
    for out, (seq, first, stop) in zip(outs, rows, strict=True):
        assert_close(out, reference(pool, queries[seq], seq, first, stop, scaling=dim**-0.5))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("block_size", [1, 16, 128])
def test_every_length_around_a_boundary(name: str, block_size: int):
    torch.manual_seed(5)
    kwargs = variant(name, 4)
    pool = make_pool(EDGES, block_size=block_size)
    queries = [torch.randn(4, length, 64) for length in EDGES]
    rows = [(seq, max(0, length - 3), length) for seq, length in enumerate(EDGES)]
    for out, (seq, first, stop) in zip(attend(pool, queries, rows, **kwargs), rows, strict=True):
        assert_close(out, reference(pool, queries[seq], seq, first, stop, **kwargs))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("groups", [1, 2, 7])
def test_a_row_has_the_same_bits_however_it_is_computed(
    name: str, groups: int, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(6)
    lengths, heads = [300, 40, 150, 1, 129], 2 * groups
    kwargs = variant(name, heads)
    pool = make_pool(lengths)
    queries = [torch.randn(heads, length, 64) for length in lengths]
    whole = attend(pool, queries, [(seq, 0, length) for seq, length in enumerate(lengths)], **kwargs)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for size in (1, 2, 5, 7, 32, 100, 129):
            rows = [
                (seq, first, min(first + size, length))
                for seq, length in enumerate(lengths)
                for first in range(0, length, size)
            ]
            order = torch.randperm(len(rows)).tolist()
            outs = attend(pool, queries, [rows[i] for i in order], **kwargs)
            for i, out in zip(order, outs, strict=True):
                seq, first, stop = rows[i]
                assert torch.equal(out, whole[seq][first:stop]), (rows[i], size, threads)


def test_scores_of_any_size():
    torch.manual_seed(11)
    pool = make_pool([140])
    query = torch.randn(4, 140, 64) * 1e4
    (out,) = attend(pool, [query], [(0, 0, 140)], scaling=1.0)
    assert_close(out, reference(pool, query, 0, 0, 140, scaling=1.0), 1e-3)


@pytest.mark.parametrize("where", ["query", "keys", "values"])
def test_what_is_not_a_number_shows_in_its_own_rows_alone(where: str):
    torch.manual_seed(12)
    pool = make_pool([140, 30])
    queries = [torch.randn(4, 140, 64), torch.randn(4, 30, 64)]
    rows = [(0, 0, 140), (1, 0, 30)]
    clean = attend(pool, queries, rows, scaling=0.125)
    slot = pool.slots(0, 140)[100]
    if where == "query":
        queries[0][:, 100] = float("nan")
    else:
        (pool.keys if where == "keys" else pool.values)[:, slot] = float("nan")
    first, second = attend(pool, queries, rows, scaling=0.125)
    assert torch.equal(second, clean[1])
    assert torch.isnan(first[100]).all()
    # Rows of the same sequence before it are computed with it at most in one tile of keys.
    assert torch.equal(first[:64], clean[0][:64])


def test_queries_of_any_layout():
    torch.manual_seed(13)
    pool = make_pool([50])
    query = torch.randn(50, 4, 64).transpose(0, 1)
    (out,) = attend(pool, [query], [(0, 10, 50)], scaling=0.125)
    assert_close(out, reference(pool, query, 0, 10, 50, scaling=0.125))
    every_other = torch.randn(4, 50, 128)[..., ::2]
    metadata = attention_batch([Span(pool.tables[0], 0, 50)], 32, native=True)
    out = paged_attention(every_other, pool.keys, pool.values, metadata, scaling=0.125)
    assert_close(out, reference(pool, every_other, 0, 0, 50, scaling=0.125))


ATTEND = """
import sys, torch
from pathlib import Path
from penstock.kernels.cpu.attention_batch import attention_batch
from penstock.kernels.cpu.native import library as native
from penstock.kernels.cpu.paged_attention import paged_attention
from penstock.kernels.span import Span

native.KERNEL_CHIPS = {sys.argv[1]: native.KERNEL_CHIPS[sys.argv[1]]}
if len(sys.argv) > 2:
    native.compiled = lambda *_: Path(sys.argv[2])
torch.manual_seed(0)
keys, values = torch.randn(2, 2, 256, 18)
for first, rows in ((0, 1), (10, 1), (0, 70), (150, 3)):
    query = torch.randn(4, rows, 18)
    batch = attention_batch([Span(list(range(8)), first, rows)], 32, native=True)
    print(paged_attention(query, keys, values, batch, scaling=0.2).double().sum().item().hex())
"""


def test_what_was_not_initialised_is_not_read(chip: str, tmp_path: Path):
    """A compiler that fills it with a pattern changes nothing."""
    made = tmp_path / "patterned.so"
    features = [f"-m{flag.replace('_', '')}" for flag in KERNEL_CHIPS[chip]]
    sources = sorted(Path(native.__file__).parent.glob("*.c"))
    command = ["cc", *FLAGS, "-ftrivial-auto-var-init=pattern", *features, "-o", made, *sources]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this compiler cannot fill what is not initialised")
    found = [
        subprocess.run(
            [sys.executable, "-c", ATTEND, chip, *which], capture_output=True, text=True, check=False
        )
        for which in ([], [str(made)])
    ]
    assert [done.returncode for done in found] == [0, 0], [done.stderr[-2000:] for done in found]
    assert found[0].stdout == found[1].stdout
