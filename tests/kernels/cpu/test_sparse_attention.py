"""Sparse decoding on a CPU: keeps what the reference keeps, attends to exactly that, and owes nothing to batch-mates."""

import pytest
import torch

from penstock.kernels.cpu.attention_batch import attention_batch
from penstock.kernels.cpu.paged_attention import paged_attention, store_kv
from penstock.kernels.cpu.sparse_attention import (
    KeySketch,
    Selection,
    SparseTelemetry,
    dropped_bound,
    kept_mass,
    select_granules,
)
from penstock.kernels.reference import sparse_attention as reference
from penstock.kernels.reference.paged_attention import paged_attention_reference
from penstock.kernels.span import Span

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 64, 32
SCALING = 0.2


class World:
    """Pools with sequences whose attention is peaked here and there, as that of real models is."""

    def __init__(self, lens: list[int], *, contiguous: bool) -> None:
        torch.manual_seed(0)
        needed = [-(-length // BLOCK) for length in lens]
        order = torch.arange(1, sum(needed) + 1) if contiguous else torch.randperm(sum(needed)) + 1
        tables = [table.tolist() for table in order.split(needed)]
        slots = (sum(needed) + 1) * BLOCK + 128
        self.keys, self.values = torch.zeros(KV_HEADS, slots, DIM), torch.zeros(KV_HEADS, slots, DIM)
        self.sketch = KeySketch(
            torch.zeros(KV_HEADS, slots, DIM, dtype=torch.int8), torch.zeros(KV_HEADS, slots)
        )
        self.telemetry = SparseTelemetry()
        self.query = torch.randn(HEADS, len(lens), DIM)
        for table, length in zip(tables, lens, strict=True):
            key, value = torch.randn(KV_HEADS, length, DIM), torch.randn(KV_HEADS, length, DIM)
            key[:, torch.randperm(length)[: length // 50 + 1]] *= 6
            places = torch.tensor([table[p // BLOCK] * BLOCK + p % BLOCK for p in range(length)])
            store_kv(key, value, self.keys, self.values, places)
            self.sketch.store(key, places)
        self.tables, self.lens = tables, lens

    def slots(self, row: int) -> list[int]:
        table = self.tables[row]
        return [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(self.lens[row])]

    def attend(self, mass: float | None, rows: list[int], **options: object) -> torch.Tensor:
        spans = [Span(self.tables[row], self.lens[row] - 1, 1, mass) for row in rows]
        return paged_attention(
            self.query[:, rows],
            self.keys,
            self.values,
            attention_batch(spans, BLOCK),
            sketch=self.sketch,
            telemetry=self.telemetry,
            scaling=SCALING,
            **options,  # type: ignore[arg-type]
        )

    def reference(self, row: int, mass: float) -> tuple[torch.Tensor, torch.Tensor]:
        query, slots = self.query[:, row], self.slots(row)
        log_mass = reference.int8_log_mass(query, self.keys[:, slots], SCALING)
        kept = reference.select(log_mass, mass, len(slots))
        out = reference.sparse_attention_reference(
            query, self.keys[:, slots], self.values[:, slots], SCALING, kept
        )
        return out, kept


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("mass", [0.6, 0.9])
def test_equals_the_reference_over_the_same_granules(contiguous, mass):
    world = World([1000, 1500, 2017, 2048], contiguous=contiguous)
    found = world.attend(mass, [0, 1, 2, 3])
    for row in range(4):
        expected, kept = world.reference(row, mass)
        assert 0.05 < kept.float().mean() < 0.5
        assert torch.allclose(found[row].double(), expected, atol=1e-4), row
    assert world.telemetry.fallbacks == 0 and world.telemetry.rows == 4
    assert mass <= world.telemetry.estimated_mass / 4 <= 1


def test_the_mass_asked_for_is_truly_kept():
    world = World([2048], contiguous=True)
    world.attend(0.9, [0])
    _, kept = world.reference(0, 0.9)
    slots = world.slots(0)
    true = float(reference.true_mass(world.query[:, 0], world.keys[:, slots], SCALING, kept).min())
    assert true >= 0.89
    assert world.telemetry.sampled_rows == 1
    assert world.telemetry.sampled_mass == pytest.approx(true, abs=1e-4)
    bound = float(reference.dropped_mass_bound(world.query[:, 0], world.keys[:, slots], SCALING, kept).max())
    assert world.telemetry.bounded_rows == 1
    assert world.telemetry.dropped_bound == pytest.approx(bound, abs=1e-4)


def test_a_row_is_the_same_in_any_batch():
    world = World([1000, 700, 2048], contiguous=False)
    together = world.attend(0.9, [1, 0, 2])
    for place, row in enumerate([1, 0, 2]):
        assert torch.equal(world.attend(0.9, [row])[0], together[place])


def test_dense_where_most_would_be_kept_or_a_window_rules():
    world = World([1000], contiguous=True)
    dense = world.attend(None, [0])
    assert torch.equal(world.attend(1.0, [0]), dense)
    assert world.telemetry.fallbacks == 1
    windowed = world.attend(0.6, [0], sliding_window=200)
    expected = paged_attention_reference(
        world.query, world.keys, world.values, [world.slots(0)], scaling=SCALING, sliding_window=200
    )
    assert torch.allclose(windowed.double(), expected, atol=1e-4)
    assert world.telemetry.rows == 1, "nothing to decide"


def test_estimators_order():
    """INT8 keys are nearly exact; extremes bound from above; the bound on what was dropped holds."""
    world = World([512], contiguous=True)
    query, keys = world.query[:, 0], world.keys[:, world.slots(0)]
    exact = reference.exact_log_mass(query, keys, SCALING)
    assert torch.allclose(reference.int8_log_mass(query, keys, SCALING), exact, rtol=0.03, atol=0.1)
    assert (reference.min_max_log_mass(query, keys, SCALING) >= exact - 1e-9).all()
    kept = reference.select(exact, 0.7, 512)
    dropped = 1 - reference.true_mass(query, keys, SCALING, kept)
    assert (dropped <= reference.dropped_mass_bound(query, keys, SCALING, kept)).all()
    assert kept[:, 0].all() and kept[:, -8:].all()


def judged(
    query: torch.Tensor, keys: torch.Tensor, length: int, mass: float, softcap: float | None
) -> tuple[float, float]:
    """What a selection truly drops and what is proved of it: query [Hkv, G, D] scaled, keys [Hkv, whole tiles, D]."""
    sketch = KeySketch(torch.zeros(keys.shape, dtype=torch.int8), torch.zeros(keys.shape[:2]))
    sketch.store(keys, torch.arange(keys.shape[1]))
    selection = select_granules(query, sketch, length, mass, softcap)
    assert isinstance(selection, Selection)
    dropped = 1 - kept_mass(query, keys, selection, length, softcap)
    return dropped, dropped_bound(query, keys, selection, length, softcap)


@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("length", [1900, 1905, 2048])
def test_no_more_is_dropped_than_the_bound_says_of_random_keys(length, softcap):
    torch.manual_seed(1)
    bounds = []
    for peak in (4.0, 8.0, 16.0):
        query, keys = torch.randn(2, 3, DIM) * 0.05, torch.randn(2, 2048, DIM)
        # Keys that most of the attention goes to, and a crowd of like ones, of which extremes say all there is to say.
        keys[:, 100:140] = query.mean(dim=1, keepdim=True) * 20 * peak
        keys[:, 300:1700] = torch.randn(2, 1, DIM) * 0.1
        dropped, bound = judged(query, keys, length, 0.6, softcap)
        assert 0 < dropped <= bound < 1
        bounds.append(bound)
    assert min(bounds) < 0.9, "a bound that says something"


def test_no_more_is_dropped_than_the_bound_says_of_real_keys(builtin_keys):
    for query, keys in builtin_keys:
        dropped, bound = judged(query, keys, keys.shape[1], 0.6, None)
        assert 0 < dropped <= bound <= 1


@pytest.fixture(scope="module")
def builtin_keys() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The last row's scaled query and the keys of every layer of the built-in model, over a text of its tokens."""
    from penstock.compress.sparse_eval import Reader, standard_library
    from penstock.models.loading import load_model
    from penstock.models.tokenizer import Tokenizer

    model, tokenizer = load_model("builtin", dtype="float32", device="cpu"), Tokenizer.load("builtin")
    reader = Reader(model)
    with torch.inference_mode():
        reader.read(standard_library(tokenizer.encode, 1024)[:1024], 0, 1024)
    found = []
    for layer, (row, _, _, options) in reader.cache.rows.items():
        keys = reader.cache.layers[layer][0][:, BLOCK : BLOCK + 1024].float()
        found.append(
            ((row[:, 0] * options["scaling"]).view(keys.shape[0], -1, keys.shape[2]).float(), keys.clone())
        )
    return found


def test_granules_of_any_length_have_estimates():
    query, keys = torch.randn(2, 8), torch.randn(1, 37, 8)
    for estimate in reference.ESTIMATORS.values():
        assert estimate(query, keys, 1.0).shape == (1, 2, 3)
