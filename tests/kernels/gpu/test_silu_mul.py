"""The gate near float64, from columns of one matrix, and quantizing to what `quantize_activation` makes of it."""

import pytest
import torch

from penstock.kernels.gpu import silu_mul as module
from penstock.kernels.gpu.quantize_activation import quantize_activation
from penstock.kernels.gpu.silu_mul import silu_mul
from penstock.kernels.reference.silu_mul import silu_mul_reference

ERRORS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("width", [1, 100, 130])
def test_is_near_float64_from_the_halves_of_one_matrix(width, dtype, device):
    both = (torch.randn(5, 2 * width, device=device) * 4).to(dtype)
    gate, up = both.split(width, dim=1)
    y, nothing = silu_mul(gate, up)
    assert y.dtype is dtype and nothing is None
    expected = silu_mul_reference(gate, up)
    assert float((y.double() - expected).abs().max() / expected.abs().max()) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("pieces", [1, 3])
def test_quantizes_what_it_wrote(dtype, pieces, device, monkeypatch):
    if pieces > 1:
        monkeypatch.setattr(module, "MAX_BLOCK", 64)
    gate, up = (torch.randn(4, 150, device=device).to(dtype) for _ in "gu")
    y, rows = silu_mul(gate, up, pad_to=16)
    expected = quantize_activation(y, pad_to=16)
    assert all(
        torch.equal(getattr(rows, part), getattr(expected, part)) for part in ("values", "scale", "zero")
    )


def test_large_gates_and_empty_batches(device):
    gate = torch.tensor([[-1000.0, 1000.0, -90.0]], device=device)
    y = silu_mul(gate, torch.ones_like(gate))[0]
    assert y.tolist() == [[0.0, 1000.0, pytest.approx(0.0, abs=1e-30)]]
    assert silu_mul(gate[:0], gate[:0])[0].shape == (0, 3)


def test_arguments_that_do_not_fit_are_named(device):
    with pytest.raises(ValueError, match="up is float16; it must be float32"):
        silu_mul(torch.ones(2, 6, device=device), torch.ones(2, 6, device=device).half())
