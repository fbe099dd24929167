"""INT8 keys and values in C: kept by the largest of each token and head, attended to as the floats that they stand for."""

import pytest
import torch

from penstock.kernels.cpu.attention_batch import attention_batch
from penstock.kernels.cpu.native.attention import can_attend, store_rounded
from penstock.kernels.cpu.native.library import library
from penstock.kernels.cpu.paged_attention import paged_attention
from penstock.kernels.span import Span

pytestmark = [
    pytest.mark.skipif(library() is None, reason="no compiler, or no AVX2"),
    pytest.mark.usefixtures("chip"),
]


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes and scales of x [..., D], by torch."""
    highest = x.abs().amax(dim=-1).clamp_min(1e-12)
    scale = highest / torch.full_like(highest, 127)
    return torch.div(x, scale[..., None]).round().to(torch.int8), scale


def stored(x: torch.Tensor, slots: list[int], num_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [Hkv, T, D] in a pool that is NaN everywhere else."""
    pool = torch.full((x.shape[0], num_slots, x.shape[2]), -77, dtype=torch.int8)
    scales = torch.full((x.shape[0], num_slots), float("nan"))
    store_rounded(x, pool, scales, torch.tensor(slots))
    return pool, scales


@pytest.mark.parametrize("dim", [1, 8, 18, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_rounded_as_torch_rounds_them(dim: int, dtype: torch.dtype):
    torch.manual_seed(dim)
    x = (torch.randn(3, 40, dim) * torch.logspace(-20, 20, 40)[:, None]).to(dtype)
    x[1, 7] = 0
    slots = torch.randperm(60)[:40].tolist()
    pool, scales = stored(x, slots, 60)
    bytes_, scale = rounded(x.float())
    assert torch.equal(pool[:, slots], bytes_) and torch.equal(scales[:, slots], scale)
    others = sorted(set(range(60)) - set(slots))
    assert torch.equal(pool[:, others], torch.full_like(pool[:, others], -77)), "and nothing else is touched"
    assert torch.isnan(scales[:, others]).all()


def test_rows_of_any_layout():
    torch.manual_seed(3)
    by_token = torch.randn(20, 2, 64).transpose(0, 1)
    every_other = torch.randn(2, 20, 128)[..., ::2]
    for x in (by_token, every_other):
        pool, scales = stored(x, list(range(20)), 20)
        assert torch.equal(pool, rounded(x)[0]) and torch.equal(scales, rounded(x)[1])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 17, 19])
def test_what_is_not_finite_stays_so(wrong: float, at: int):
    x = torch.randn(1, 3, 20)
    x[0, 1, at] = wrong
    _, scales = stored(x, [0, 1, 2], 3)
    assert torch.isfinite(scales).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"sliding_window": 40}, {"softcap": 5.0}, {"sliding_window": 70, "sinks": torch.tensor([0.5] * 6)}],
    ids=["plain", "window", "softcap", "window and sinks"],
)
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (18, 33), (128, 128), (256, 256), (192, 128)])
def test_attention_is_that_over_what_the_bytes_stand_for(dim: int, value_dim: int, kwargs: dict):
    """To the bit, in any chunks."""
    torch.manual_seed(dim)
    length, num_slots = 200, 320
    table = torch.randperm(10)[:7].tolist()
    slots = [table[at // 32] * 32 + at % 32 for at in range(length)]
    query, key = torch.randn(6, length, dim), torch.randn(2, length, dim)
    value = torch.randn(2, length, value_dim)
    pools, scales = zip(*(stored(x, slots, num_slots) for x in (key, value)), strict=True)
    floats = [pool * scale[..., None] for pool, scale in zip(pools, scales, strict=True)]
    for size in (200, 1, 7, 64):
        spans = [Span(table, first, min(size, length - first)) for first in range(0, length, size)]
        batch = attention_batch(spans, 32, native=True)
        found = paged_attention(query, *pools, batch, scales=scales, scaling=0.125, **kwargs)
        assert torch.equal(found, paged_attention(query, *floats, batch, scaling=0.125, **kwargs))
        assert torch.isfinite(found).all()


def test_what_it_is_for():
    assert can_attend(torch.int8, 256) and not can_attend(torch.int8, 257)
    assert not can_attend(torch.bfloat16, 64)
