"""Sparse decoding on the GPU: keeps what the reference keeps, attends to exactly that, and owes nothing to batch-mates."""

import pytest
import torch

from penstock.kernels.gpu.paged_attention import paged_attention
from penstock.kernels.gpu.paged_batch import PagedBatch
from penstock.kernels.gpu.sparse_attention import KEYS, MEAN_STD, MIN_MAX, SUMS, sparse_attention
from penstock.kernels.gpu.store_kv import store_kv
from penstock.kernels.reference import sparse_attention as reference
from penstock.kernels.span import Span

SCALING = 0.2
LOG_MASS = {
    KEYS: reference.exact_log_mass,
    MIN_MAX: reference.min_max_log_mass,
    MEAN_STD: reference.mean_std_log_mass,
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


class World:
    """Shuffled pages with sequences of peaked attention, and NaN everywhere else."""

    def __init__(
        self, lens, device, *, heads=4, kv_heads=2, dim=64, int8=False, formula=KEYS, dtype=torch.float32
    ):
        needed = [-(-length // 64) for length in lens]
        order = (torch.randperm(sum(needed)) + 1).split(needed)
        shape = (sum(needed) + 1, kv_heads, 2, 64, dim)
        self.scales = self.summaries = None
        if int8:
            self.pages = torch.full(shape, 77, dtype=torch.int8, device=device)
            self.scales = torch.full(shape[:-1], float("nan"), device=device)
        else:
            self.pages = torch.full(shape, float("nan"), dtype=dtype, device=device)
        if formula != KEYS:
            self.summaries = torch.full((shape[0], kv_heads, 4, 2, dim), float("nan"), device=device)
        self.lens, self.formula, self.device = lens, formula, device
        self.tables = [table.tolist() for table in order]
        for table, length in zip(self.tables, lens, strict=True):
            key, value = torch.randn(2, length, kv_heads, dim).unbind()
            key[torch.randperm(length)[: length // 50 + 1]] *= 6
            batch = PagedBatch.build([Span(table, 0, length)], device)
            key, value = key.to(device, dtype), value.to(device, dtype)
            store_kv(
                key, value, self.pages, self.scales, self.summaries, batch, formula=max(formula, MIN_MAX)
            )
        self.query = torch.randn(heads, len(lens), dim).to(device, dtype).transpose(0, 1)
        self.telemetry = torch.zeros(SUMS, dtype=torch.int64, device=device)

    def attend(self, masses, rows=None, **options):
        rows = list(range(len(self.lens))) if rows is None else rows
        spans = [
            Span(self.tables[row], self.lens[row] - 1, 1, mass)
            for row, mass in zip(rows, masses, strict=True)
        ]
        batch = PagedBatch.build(spans, self.device)
        query, bounds = self.query[rows], options.pop("bounds", None)
        dense = paged_attention(
            query, self.pages, self.scales, batch, scaling=SCALING, leave_sparse=True, **options
        )
        selection = sparse_attention(
            query,
            self.pages,
            self.scales,
            self.summaries,
            batch,
            dense.out,
            scaling=SCALING,
            telemetry=self.telemetry,
            formula=self.formula,
            bounds=bounds,
            **options,
        )
        return dense.out, selection

    def stored(self, row):
        """The row's keys and values as stored, [Hkv, n, D] float64."""
        pages = self.pages.double()
        if self.scales is not None:
            pages = pages * self.scales.double()[..., None]
        own = pages[self.tables[row]].permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, : self.lens[row]]
        return own[0].cpu(), own[1].cpu()


def kept(selection, row, num_granules):
    """[Hkv, N] bool"""
    mask = torch.zeros(selection.granules.shape[1], num_granules, dtype=torch.bool)
    for head, length in enumerate(selection.lengths[row].tolist()):
        listed = selection.granules[row, head, : length // 16].tolist()
        assert listed == sorted(set(listed))
        mask[head, listed] = True
    return mask


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({}, KEYS),
        ({}, MIN_MAX),
        ({}, MEAN_STD),
        ({"int8": True}, KEYS),
        ({"int8": True}, MIN_MAX),
        ({"heads": 20, "kv_heads": 1, "dim": 128}, KEYS),
        ({"heads": 6, "kv_heads": 2, "dim": 80}, KEYS),
        ({"dtype": torch.float16}, KEYS),
        ({"dtype": torch.bfloat16}, KEYS),
    ],
    ids=str,
)
def test_keeps_and_attends_to_what_the_reference_says(options, formula, device):
    lens = [700, 1, 64, 1040, 257]
    world = World(lens, device, formula=formula, **options)
    out, selection = world.attend([0.9] * len(lens))
    exact = options.get("dtype") is None
    for row, length in enumerate(lens):
        keys, values = world.stored(row)
        query = world.query[row].double().cpu()
        log_mass = LOG_MASS[formula](query, keys, SCALING)
        mine = kept(selection, row, log_mass.shape[2])
        wanted = reference.select(log_mass, 0.9, length)
        shares = log_mass.softmax(-1)
        assert ((shares * mine[:, None]).sum(-1) > 0.899).all()
        if exact:
            # Shares that are equal to float32's eye may come in another order.
            assert (mine != wanted).sum() <= 2
        expected = reference.sparse_attention_reference(query, keys, values, SCALING, mine)
        error = (out[row].double().cpu() - expected).abs().amax(-1) / expected.abs().amax(-1)
        assert float(error.max()) < TOLERANCE[options.get("dtype", torch.float32)]
    heads, tokens, context, millionths = world.telemetry.tolist()
    assert heads == len(lens) * world.pages.shape[1] and tokens == int(selection.lengths.sum())
    assert context == sum(lens) * world.pages.shape[1] and 0.89e6 * heads < millionths < 1.001e6 * heads


def test_dense_and_sparse_rows_in_one_batch_are_what_they_are_alone(device):
    world = World([600, 300, 1100], device)
    mixed, _ = world.attend([0.8, None, 0.7])
    for row, mass in ((0, 0.8), (2, 0.7)):
        assert torch.equal(world.attend([mass], rows=[row])[0][0], mixed[row])
    spans = [Span(world.tables[1], 299, 1)]
    alone = paged_attention(
        world.query[1:2], world.pages, None, PagedBatch.build(spans, device), scaling=SCALING
    )
    assert torch.equal(alone.out[0], mixed[1])


def test_nearly_all_of_the_mass_is_everything(device):
    world = World([600], device)
    out, selection = world.attend([0.9999999])
    spans = [Span(world.tables[0], 599, 1)]
    dense = paged_attention(world.query, world.pages, None, PagedBatch.build(spans, device), scaling=SCALING)
    assert selection.lengths.tolist() == [[608, 608]]
    # Some units in the last place of values up to 4, which are summed in another order.
    assert float((out - dense.out).abs().max()) < 4e-6


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_no_more_is_dropped_than_the_bound_says(int8, device):
    world = World([400, 300, 600], device, formula=MIN_MAX, int8=int8)
    masses, bounds = [0.3, None, 0.6], torch.zeros(2, dtype=torch.float64, device=device)
    _, selection = world.attend(masses, bounds=bounds)
    worst = []
    for row in (0, 2):
        keys, _ = world.stored(row)
        query, mine = world.query[row].double().cpu(), kept(selection, row, -(-keys.shape[1] // 16))
        dropped = 1 - reference.true_mass(query, keys, SCALING, mine)
        expected = reference.dropped_mass_bound(query, keys, SCALING, mine)
        assert (dropped <= expected).all() and (dropped > 0).any()
        worst.append(expected.amax(dim=1))
    rows, total = bounds.tolist()
    assert rows == 2 * 2 and total == pytest.approx(float(torch.cat(worst).sum()), rel=1e-3)


def test_bounds_need_summaries_that_bound(device):
    world = World([700], device)
    with pytest.raises(ValueError, match="bounds come from min/max summaries"):
        world.attend([0.5], bounds=torch.zeros(2, dtype=torch.float64, device=device))


def test_softcap(device):
    world = World([700], device)
    out, selection = world.attend([0.8], softcap=3.0)
    keys, values = world.stored(0)
    scores = world.query[0].double().cpu().view(2, 2, -1) @ keys.transpose(1, 2) * SCALING
    scores = (3.0 * (scores / 3.0).tanh()).masked_fill(
        ~kept(selection, 0, 44).repeat_interleave(16, 1)[:, None, :700], float("-inf")
    )
    assert float((out[0].double().cpu() - (scores.softmax(-1) @ values).flatten(0, 1)).abs().max()) < 1e-5


def test_summaries_that_do_not_fit_are_named(device):
    world = World([100], device, formula=MIN_MAX)
    world.summaries = world.summaries[:, :, :2]
    with pytest.raises(
        ValueError, match=r"summaries has shape \[3, 2, 2, 2, 64\]; it must be \[3, 2, 4, 2, 64\]"
    ):
        world.attend([0.9])
    world.summaries = None
    with pytest.raises(ValueError, match="summaries are for estimating from them"):
        world.attend([0.9])
