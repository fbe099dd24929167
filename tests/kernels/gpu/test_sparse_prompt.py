"""Sparse prompts on the GPU: blocks keep what the reference keeps, attend to exactly that, and owe nothing to others.

Pools hold NaN wherever nothing was stored. Errors are relative to a row's largest output, as in test_paged_attention.py.
"""

import pytest
import torch

from penstock.kernels.gpu import sparse_prompt as module
from penstock.kernels.gpu.paged_attention import paged_attention
from penstock.kernels.gpu.paged_batch import PagedBatch
from penstock.kernels.gpu.sparse_prompt import SUMS, sparse_prompt
from penstock.kernels.gpu.store_kv import store_kv
from penstock.kernels.reference import sparse_prompt as reference
from penstock.kernels.span import Span

SCALING = 0.2
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


class World:
    """Shuffled pages with sequences of peaked attention, and NaN everywhere else."""

    def __init__(self, lens, device, *, heads=4, kv_heads=2, dim=64, int8=False, dtype=torch.float32):
        needed = [-(-length // 64) for length in lens]
        self.tables = [table.tolist() for table in (torch.randperm(sum(needed)) + 1).split(needed)]
        shape = (sum(needed) + 1, kv_heads, 2, 64, dim)
        self.scales = None
        if int8:
            self.pages = torch.full(shape, 77, dtype=torch.int8, device=device)
            self.scales = torch.full(shape[:-1], float("nan"), device=device)
        else:
            self.pages = torch.full(shape, float("nan"), dtype=dtype, device=device)
        self.lens, self.device = lens, device
        for table, length in zip(self.tables, lens, strict=True):
            key, value = torch.randn(2, length, kv_heads, dim).to(device, dtype).unbind()
            key[torch.randperm(length)[: length // 50 + 1]] *= 6
            store_kv(
                key, value, self.pages, self.scales, None, PagedBatch.build([Span(table, 0, length)], device)
            )
        # As transformers gives it: heads outside, rows inside.
        self.query = [torch.randn(heads, length, dim).to(device, dtype) for length in lens]
        self.telemetry = torch.zeros(SUMS, dtype=torch.int64, device=device)

    def attend(self, spans, **options):
        """Spans of (sequence, first, stop, mass, is prompt) -> the rows' output, and what sparse prompts selected."""
        batch = PagedBatch.build(
            [
                Span(self.tables[seq], first, stop - first, mass, is_prompt)
                for seq, first, stop, mass, is_prompt in spans
            ],
            self.device,
        )
        query = torch.cat([self.query[seq][:, first:stop] for seq, first, stop, *_ in spans], 1)
        query = query.transpose(0, 1)
        out = paged_attention(
            query, self.pages, self.scales, batch, scaling=SCALING, leave_sparse=True, **options
        ).out
        if batch.prompt_blocks is None:
            return out, []
        selection = sparse_prompt(
            query,
            self.pages,
            self.scales,
            batch,
            out,
            scaling=SCALING,
            telemetry=self.telemetry,
            **options,
        )
        return out, [
            [listed[:count].tolist() for listed, count in zip(*rows, strict=True)]
            for some in selection
            for rows in zip(some.blocks, some.counts.tolist(), strict=True)
        ]

    def stored(self, seq, stop):
        """Keys and values as stored, [Hkv, stop, D] float64."""
        pages = self.pages.double()
        if self.scales is not None:
            pages = pages * self.scales.double()[..., None]
        own = pages[self.tables[seq]].permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, :stop]
        return own[0].cpu(), own[1].cpu()

    def check(self, seq, first, stop, mass, out, selected, tolerance, *, near=0):
        """One block's output over what it selected, and that selection against the reference."""
        query = self.query[seq][:, first:stop].double().cpu()
        keys, values = self.stored(seq, stop)
        shares = reference.prompt_shares(query, keys, first, SCALING)
        kept = torch.zeros(keys.shape[0], shares.shape[-1], dtype=torch.bool)
        for head, listed in enumerate(selected):
            assert listed == sorted(set(listed))
            kept[head, listed] = True
        assert kept[:, 0].all() and kept[:, -3:].all()
        assert float((shares * kept[:, None, None]).sum(-1).min()) > mass - 0.001 - near
        # Thresholds come in steps of a 32nd of an octave, and roundings may reorder equals.
        wanted = reference.select_prompt_blocks(shares, mass)
        assert int((kept != wanted).sum()) <= 2 * keys.shape[0]
        expected = reference.sparse_prompt_reference(query, keys, values, first, SCALING, kept)
        expected = expected.transpose(0, 1)
        error = (out.double().cpu() - expected).abs().amax(-1) / expected.abs().amax(-1)
        assert float(error.max()) < tolerance


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"int8": True},
        {"heads": 2, "kv_heads": 2},
        {"heads": 8, "kv_heads": 1, "dim": 32},
        {"heads": 6, "kv_heads": 2, "dim": 80},
        {"heads": 8, "kv_heads": 2, "dim": 128, "int8": True},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16, "int8": True},
    ],
    ids=str,
)
def test_keeps_and_attends_to_what_the_reference_says(options, device):
    world = World([705], device, **options)
    out, selected = world.attend([(0, 512, 705, 0.7, True)])
    near = 0.01 if options.get("int8") or options.get("dtype") else 0.0
    for number, first in enumerate(range(512, 705, 64)):
        stop = min(first + 64, 705)
        tolerance = TOLERANCE[options.get("dtype", torch.float32)]
        own = out[first - 512 : stop - 512]
        world.check(0, first, stop, 0.7, own, selected[number], tolerance, near=near)
    listed = [len(head) for block in selected for head in block]
    blocks, kept, context, millionths = world.telemetry.tolist()
    kv_heads = world.pages.shape[1]
    assert blocks == len(listed) == 4 * kv_heads
    assert kept == sum(listed) * 64 - 63 * kv_heads, "the last block has one row"
    assert context == (576 + 640 + 704 + 705) * kv_heads
    assert kept < context and 0.69e6 * blocks < millionths < 1.001e6 * blocks


@pytest.mark.parametrize("length", [1, 63, 64, 65, 192, 193, 257])
def test_every_page_boundary(length, device):
    world = World([length], device)
    out, selected = world.attend([(0, 0, length, 0.8, True)])
    for number, first in enumerate(range(0, length, 64)):
        stop = min(first + 64, length)
        world.check(0, first, stop, 0.8, out[first:stop], selected[number], 1e-5)
        if number < 4:
            assert selected[number] == [list(range(number + 1))] * 2, (
                "first, recent and own are all there are"
            )


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_a_batch_of_all_kinds_is_what_each_is_alone(int8, device):
    world = World([130, 300, 321, 180, 321], device, int8=int8)
    spans = [
        (0, 129, 130, None, False),
        (3, 100, 180, None, False),
        (1, 0, 64, None, False),
        (1, 64, 300, 0.6, True),
        (4, 320, 321, 0.8, True),
        (2, 192, 321, 0.7, True),
    ]
    together, selected = world.attend(spans)
    assert not together.isnan().any()
    row = 0
    for span in spans:
        alone, _ = world.attend([span])
        assert torch.equal(alone, together[row : row + len(alone)]), span
        row += len(alone)
    assert len(selected) == 4 + 1 + 3


def test_blocks_are_the_same_however_the_prompt_is_cut_and_the_work_divided(device, monkeypatch):
    world = World([450], device)
    whole, selected = world.attend([(0, 128, 450, 0.7, True)])
    for cut in (192, 384):
        first, one = world.attend([(0, 128, cut, 0.7, True)])
        second, two = world.attend([(0, cut, 450, 0.7, True)])
        assert torch.equal(torch.cat([first, second]), whole) and one + two == selected
    monkeypatch.setattr(module, "WORKSPACE", 4 * 64 * 4 * 8 * 4)
    rounds, again = world.attend([(0, 128, 450, 0.7, True)])
    assert torch.equal(rounds, whole) and again == selected
    assert any(len(listed) < number + 3 for number, block in enumerate(selected) for listed in block)


def test_all_of_the_mass_is_dense_attention(device):
    world = World([450], device)
    out, selected = world.attend([(0, 0, 450, 0.9999999, True)])
    dense, _ = world.attend([(0, 0, 450, None, False)])
    assert selected[-1] == [list(range(8))] * 2
    assert float((out - dense).abs().max()) < 1e-5


def test_softcap(device):
    world = World([500], device)
    out, selected = world.attend([(0, 448, 500, 0.7, True)], softcap=2.0)
    assert any(len(listed) < 8 for listed in selected[0])
    keys, values = world.stored(0, 500)
    scores = world.query[0][:, 448:500].double().cpu().view(2, 2, 52, 64) @ keys[:, None].transpose(2, 3)
    scores = 2.0 * (scores * SCALING / 2.0).tanh()
    shown = torch.zeros(2, 8, dtype=torch.bool)
    for head, listed in enumerate(selected[0]):
        shown[head, listed] = True
    hidden = ~shown.repeat_interleave(64, 1)[:, None, None, :500]
    hidden = hidden | (torch.arange(500) > torch.arange(448, 500)[:, None])
    expected = (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values[:, None]).flatten(0, 1)
    assert float((out.double().cpu() - expected.transpose(0, 1)).abs().max()) < 1e-5


def test_a_layer_that_has_no_sparse_attention_takes_the_batch_densely(device):
    world = World([200], device)
    batch = PagedBatch.build([Span(world.tables[0], 64, 136, 0.5, True)], device)
    query = world.query[0][:, 64:].transpose(0, 1)
    windowed = {"scaling": SCALING, "sliding_window": 70}
    found = paged_attention(query, world.pages, None, batch.densely(), **windowed).out
    plain = PagedBatch.build([Span(world.tables[0], 64, 136)], device)
    assert torch.equal(found, paged_attention(query, world.pages, None, plain, **windowed).out)


def test_what_does_not_fit_is_named(device):
    world = World([200], device)
    batch = PagedBatch.build([Span(world.tables[0], 0, 200, 0.5, True)], device)
    query = world.query[0].transpose(0, 1)
    with pytest.raises(ValueError, match="batch has sparse prompts, whose rows would stay unwritten"):
        paged_attention(query, world.pages, None, batch, scaling=1.0)
    with pytest.raises(ValueError, match=r"out has shape \[200, 4, 32\]; it must be \[200, 4, 64\]"):
        sparse_prompt(query, world.pages, None, batch, torch.empty(200, 4, 32, device=device), scaling=1.0)
    with pytest.raises(
        ValueError, match=r"scales are for int8 pages, and only for them; pages are torch\.fl"
    ):
        scales = torch.ones(world.pages.shape[:-1], device=device)
        sparse_prompt(query, world.pages, scales, batch, torch.empty_like(query), scaling=1.0)
