"""Sparse prompts on a CPU: blocks keep what the reference keeps, attend to exactly that, and owe nothing to others."""

import pytest
import torch

from penstock.kernels.cpu.attention_batch import attention_batch
from penstock.kernels.cpu.paged_attention import paged_attention, store_kv
from penstock.kernels.cpu.sparse_attention import KeySketch, SparseTelemetry
from penstock.kernels.cpu.sparse_prompt import select_blocks
from penstock.kernels.reference import sparse_prompt as reference
from penstock.kernels.span import Span

KV_HEADS, DIM, BLOCK = 2, 64, 32
SCALING = 0.2
STALE = 3e18  # finite, as a former owner may have left


class World:
    """Pools with sequences whose attention is peaked here and there; the rest is stale, and the sketch there NaN."""

    def __init__(self, lens: list[int], *, heads: int = 4, contiguous: bool = False, dim: int = DIM) -> None:
        torch.manual_seed(0)
        needed = [-(-length // BLOCK) for length in lens]
        order = torch.arange(1, sum(needed) + 1) if contiguous else torch.randperm(sum(needed)) + 1
        self.tables = [table.tolist() for table in order.split(needed)]
        slots = (sum(needed) + 1) * BLOCK + 128
        self.keys, self.values = (torch.full((KV_HEADS, slots, dim), STALE) for _ in "kv")
        self.keys[:, :BLOCK], self.values[:, :BLOCK] = 0, 0  # the null block
        self.sketch = KeySketch(
            torch.full((KV_HEADS, slots, dim), 99, dtype=torch.int8),
            torch.full((KV_HEADS, slots), float("nan")),
        )
        self.telemetry = SparseTelemetry()
        self.query = [torch.randn(heads, length, dim) for length in lens]
        for row, length in enumerate(lens):
            key, value = torch.randn(KV_HEADS, length, dim), torch.randn(KV_HEADS, length, dim)
            key[:, torch.randperm(length)[: length // 100 + 1]] *= 5
            places = torch.tensor(self.slots(row, length))
            store_kv(key, value, self.keys, self.values, places)
            self.sketch.store(key, places)
        self.lens = lens

    def slots(self, row: int, length: int) -> list[int]:
        table = self.tables[row]
        return [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(length)]

    def attend(self, spans: list[tuple[int, int, int, float | None]], **options: object) -> torch.Tensor:
        """Spans of (sequence, first, stop, mass)."""
        batch = [
            Span(self.tables[row], first, stop - first, mass, is_prompt=True)
            for row, first, stop, mass in spans
        ]
        query = torch.cat([self.query[row][:, first:stop] for row, first, stop, _ in spans], dim=1)
        return paged_attention(
            query,
            self.keys,
            self.values,
            attention_batch(batch, BLOCK),
            sketch=self.sketch,
            telemetry=self.telemetry,
            scaling=SCALING,
            **options,  # type: ignore[arg-type]
        )

    def reference(self, row: int, first: int, stop: int, mass: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [n, Hq, D] and the least mass held [Hkv] of one block, over what the implementation selects."""
        query, slots = self.query[row][:, first:stop], self.slots(row, stop)
        keys, values = self.keys[:, slots], self.values[:, slots]
        kept = torch.zeros(KV_HEADS, first // 64 + 1, dtype=torch.bool)
        scaled = (query * SCALING).view(KV_HEADS, -1, *query.shape[1:])
        padded = self.slots(row, stop) + [0] * (-stop % 64)
        for head in range(KV_HEADS):
            found = select_blocks(
                scaled[head],
                self.sketch.quantized[head, padded],
                self.sketch.scale[head, padded],
                first // 64,
                mass,
                None,
            )
            kept[head, found.blocks] = True
        shares = reference.prompt_shares(query, keys, first, SCALING)
        wanted = reference.select_prompt_blocks(shares, mass)
        # INT8 scores may put two blocks of nearly equal share in another order.
        assert int((kept != wanted).sum()) <= 2
        held = (shares * kept[:, None, None]).sum(-1).amin(dim=(1, 2))
        out = reference.sparse_prompt_reference(query, keys, values, first, SCALING, kept)
        return out.transpose(0, 1), held


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("length", [1024, 1025, 1087, 990])
def test_equals_the_reference_over_the_same_blocks(contiguous, heads, length):
    world = World([length, 70], heads=heads, contiguous=contiguous)
    found = world.attend([(0, 512, length, 0.8)])
    for first in range(512, length, 64):
        stop = min(first + 64, length)
        expected, held = world.reference(0, first, stop, 0.8)
        assert torch.allclose(found[first - 512 : stop - 512].double(), expected, atol=1e-4), first
        assert float(held.min()) > 0.79
    telemetry = world.telemetry
    assert telemetry.prompt_blocks == KV_HEADS * -(-(length - 512) // 64)
    assert 0.2 < telemetry.prompt_kept_tokens / telemetry.prompt_context_tokens < 0.95
    assert 0.8 <= telemetry.prompt_estimated_mass / telemetry.prompt_blocks <= 1


def test_the_first_blocks_keep_everything():
    world = World([200])
    sparse = world.attend([(0, 0, 200, 0.1)])
    assert torch.allclose(sparse, world.attend([(0, 0, 200, None)]), atol=1e-5)
    assert world.telemetry.prompt_kept_tokens == world.telemetry.prompt_context_tokens


def test_all_of_the_mass_is_everything():
    world = World([700])
    sparse = world.attend([(0, 0, 700, 1.0)])
    assert torch.allclose(sparse, world.attend([(0, 0, 700, None)]), atol=1e-5)


def test_a_block_is_the_same_in_any_batch_and_chunk():
    world = World([700, 513, 300])
    together = world.attend([(2, 0, 300, None), (0, 128, 700, 0.7), (1, 128, 513, 0.9)])
    assert torch.equal(world.attend([(1, 128, 513, 0.9)]), together[-385:])
    for cut in (192, 448, 640):
        first, second = world.attend([(0, 128, cut, 0.7)]), world.attend([(0, cut, 700, 0.7)])
        assert torch.equal(torch.cat([first, second]), together[300:-385]), cut
    # One row alone: the last of 513 tokens is a block of its own.
    assert torch.equal(world.attend([(1, 512, 513, 0.9)])[0], together[-1])


def test_a_cut_block_is_a_fault_of_ours():
    with pytest.raises(AssertionError, match="a block of a sparse prompt is cut"):
        World([300]).attend([(0, 100, 300, 0.9)])


def test_softcap_is_applied_and_a_window_or_sinks_make_it_dense():
    world = World([700])
    capped = world.attend([(0, 448, 700, 1.0)], softcap=2.0)
    assert torch.allclose(capped, world.attend([(0, 448, 700, None)], softcap=2.0), atol=1e-5)
    decided = world.telemetry.prompt_blocks
    for options in ({"sliding_window": 100}, {"sinks": torch.randn(4)}):
        sparse = world.attend([(0, 448, 700, 0.5)], **options)
        assert torch.equal(sparse, world.attend([(0, 448, 700, None)], **options))
    assert world.telemetry.prompt_blocks == decided
