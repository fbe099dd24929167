"""Attention over pages on the GPU, against float64, over pools whose unused parts hold NaN.

Errors are relative to the largest output of a row: float32 1e-5, float16 4e-3, bf16 2e-2. INT8 pages are compared with the
same quantized keys and values, so they add none.
"""

from dataclasses import dataclass

import pytest
import torch

from penstock.kernels.gpu import paged_attention as module
from penstock.kernels.gpu.paged_attention import paged_attention
from penstock.kernels.gpu.paged_batch import PagedBatch
from penstock.kernels.gpu.store_kv import store_kv
from penstock.kernels.reference.paged_attention import paged_attention_reference
from penstock.kernels.span import Span

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@dataclass
class Sequence:
    """`tokens` new rows behind `first` stored ones."""

    first: int
    tokens: int


class World:
    """A pool with the keys and values of some sequences in shuffled pages, and NaN everywhere else."""

    def __init__(
        self, sequences, *, heads, kv_heads, head_dim, device, dtype=torch.float32, int8=False
    ) -> None:
        self.kv_heads, self.device, self.dtype = kv_heads, device, dtype
        needed = [-(-(s.first + s.tokens) // 64) for s in sequences]
        num_pages = sum(needed) + 3
        order = (torch.randperm(num_pages - 1) + 1).tolist()
        shape = (num_pages, kv_heads, 2, 64, head_dim)
        if int8:
            self.pages = torch.full(shape, 77, dtype=torch.int8, device=device)
            self.scales = torch.full(shape[:-1], float("nan"), device=device)
        else:
            self.pages = torch.full(shape, float("nan"), dtype=dtype, device=device)
            self.scales = None
        self.spans = []
        for sequence, pages in zip(sequences, needed, strict=True):
            table = [order.pop() for _ in range(pages)]
            stored = Span(table, 0, sequence.first + sequence.tokens)
            batch = PagedBatch.build([stored], device)
            key, value = (
                torch.randn(stored.num_tokens, kv_heads, head_dim, device=device).to(dtype) for _ in "kv"
            )
            store_kv(key, value, self.pages, self.scales, None, batch)
            self.spans.append(Span(table, sequence.first, sequence.tokens))
        rows = sum(s.tokens for s in sequences)
        # As transformers gives it: heads outside, rows inside.
        self.query = torch.randn(heads, rows, head_dim, device=device).to(dtype).transpose(0, 1)

    def attend(self, spans=None, rows=slice(None), **kwargs):
        batch = PagedBatch.build(self.spans if spans is None else spans, self.device)
        return paged_attention(self.query[rows], self.pages, self.scales, batch, scaling=0.1, **kwargs)

    def expected(self, **kwargs):
        pages = self.pages.float()
        if self.scales is not None:
            pages = pages * self.scales[..., None]
        flat = pages.permute(2, 1, 0, 3, 4).flatten(2, 3)
        slots = [
            [span.block_table[p // 64] * 64 + p % 64 for p in range(position + 1)]
            for span in self.spans
            for position in range(span.first_position, span.context_len)
        ]
        return paged_attention_reference(
            self.query.transpose(0, 1), flat[0], flat[1], slots, scaling=0.1, **kwargs
        )


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert not found.isnan().any()
    return float(((found.double().cpu() - expected).abs() / expected.abs().amax(-1, keepdim=True)).max())


DECODES = [1, 2, 63, 64, 65, 127, 128, 129]


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_decodes_at_every_page_boundary(int8, device):
    world = World(
        [Sequence(n - 1, 1) for n in DECODES], heads=4, kv_heads=2, head_dim=64, device=device, int8=int8
    )
    assert error(world.attend().out, world.expected()) < 1e-5


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_chunks_at_every_page_boundary(int8, device):
    chunks = [(0, 2), (0, 64), (0, 65), (1, 63), (63, 2), (64, 64), (62, 70), (128, 3)]
    world = World([Sequence(*c) for c in chunks], heads=4, kv_heads=2, head_dim=64, device=device, int8=int8)
    assert error(world.attend().out, world.expected()) < 1e-5


MIXED = [Sequence(0, 1), Sequence(77, 1), Sequence(64, 40), Sequence(0, 70)]


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_head_sizes(head_dim, int8, device):
    world = World(MIXED, heads=2, kv_heads=1, head_dim=head_dim, device=device, int8=int8)
    assert error(world.attend().out, world.expected()) < 1e-5


@pytest.mark.parametrize("group", [1, 3, 4, 8, 20])
def test_groups(group, device):
    world = World(MIXED, heads=2 * group, kv_heads=2, head_dim=64, device=device)
    assert error(world.attend().out, world.expected()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_half_precisions(dtype, int8, device):
    world = World(MIXED, heads=4, kv_heads=2, head_dim=64, device=device, dtype=dtype, int8=int8)
    assert error(world.attend().out, world.expected()) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "options",
    [
        {"sliding_window": 1},
        {"sliding_window": 17},
        {"sliding_window": 64},
        {"softcap": 0.5},
        {"sinks": 4},
        {"sliding_window": 30, "softcap": 1.0, "sinks": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_windows_softcap_and_sinks(options, int8, device, monkeypatch):
    monkeypatch.setattr(module, "SPLIT", 64)
    options = dict(options)
    if "sinks" in options:
        options["sinks"] = torch.randn(options["sinks"], device=device)
    sequences = [Sequence(40, 1), Sequence(129, 1), Sequence(200, 1), Sequence(64, 70)]
    world = World(sequences, heads=4, kv_heads=2, head_dim=64, device=device, int8=int8)
    assert error(world.attend(**options).out, world.expected(**options)) < 1e-5


def test_long_decodes_are_split_and_combined(device, monkeypatch):
    monkeypatch.setattr(module, "SPLIT", 128)
    sequences = [Sequence(n - 1, 1) for n in (5, 127, 128, 129, 256, 385)]
    world = World(sequences, heads=4, kv_heads=2, head_dim=64, device=device)
    assert error(world.attend().out, world.expected()) < 1e-5


@pytest.mark.parametrize("with_sinks", [False, True])
def test_the_logarithm_of_the_sum(with_sinks, device, monkeypatch):
    monkeypatch.setattr(module, "SPLIT", 64)
    world = World(
        [Sequence(20, 1), Sequence(150, 1), Sequence(3, 9)], heads=2, kv_heads=1, head_dim=64, device=device
    )
    sinks = torch.randn(2, device=device) if with_sinks else None
    found = world.attend(sinks=sinks, with_lse=True).lse
    row = 0
    for span in world.spans:
        keys = torch.cat([world.pages[page, 0, 0] for page in span.block_table])
        for position in range(span.first_position, span.context_len):
            scores = world.query[row].double() @ keys[: position + 1].double().T * 0.1
            if sinks is not None:
                scores = torch.cat([scores, sinks.double()[:, None]], dim=1)
            assert torch.allclose(found[row].double(), scores.logsumexp(1), atol=1e-5)
            row += 1


def test_a_row_has_the_same_bits_however_its_prompt_is_cut(device):
    world = World([Sequence(0, 150)], heads=4, kv_heads=2, head_dim=64, device=device)
    whole = world.attend().out
    table = world.spans[0].block_table
    for cut in (2, 63, 64, 100, 148):
        first = world.attend([Span(table, 0, cut)], slice(0, cut)).out
        second = world.attend([Span(table, cut, 150 - cut)], slice(cut, 150)).out
        assert torch.equal(torch.cat([first, second]), whole)


def test_no_rows(device):
    world = World([Sequence(0, 1)], heads=2, kv_heads=1, head_dim=64, device=device)
    assert world.attend([], slice(0, 0)).out.shape == (0, 2, 64)


def test_what_does_not_fit_is_named(device):
    world = World([Sequence(0, 1)], heads=2, kv_heads=1, head_dim=64, device=device)
    batch = PagedBatch.build(world.spans, device)
    with pytest.raises(ValueError, match="query has 2 heads, which 3 KV heads do not divide"):
        wide = torch.zeros(2, 3, 2, 64, 64, device=device)
        paged_attention(world.query, wide, None, batch, scaling=1.0)
    with pytest.raises(ValueError, match=r"pages are torch.float16; they must be int8 or torch.float32"):
        paged_attention(world.query, world.pages.half(), None, batch, scaling=1.0)
    with pytest.raises(ValueError, match=r"sinks has shape \[3\]; it must be \[2\]"):
        paged_attention(
            world.query, world.pages, None, batch, scaling=1.0, sinks=torch.zeros(3, device=device)
        )


@pytest.mark.parametrize("scaling", [0.0, -0.25, float("nan")])
def test_a_scaling_that_is_not_positive_is_refused(scaling, device):
    world = World([Sequence(0, 1)], heads=2, kv_heads=1, head_dim=64, device=device)
    batch = PagedBatch.build(world.spans, device)
    with pytest.raises(ValueError, match=f"scaling is {scaling}; it must be positive"):
        paged_attention(world.query, world.pages, None, batch, scaling=scaling)
