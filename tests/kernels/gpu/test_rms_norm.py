"""RMS norm near float64, rounding as transformers does, and quantizing to what `quantize_activation` makes of it."""

import pytest
import torch

from penstock.kernels.gpu import rms_norm as module
from penstock.kernels.gpu.quantize_activation import quantize_activation
from penstock.kernels.gpu.rms_norm import rms_norm
from penstock.kernels.reference.rms_norm import rms_norm_reference

ERRORS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (5, 64), (2, 513)], ids=str)
@pytest.mark.parametrize(("offset", "rounds_twice"), [(0.0, True), (1.0, False)])
def test_is_near_float64(shape, dtype, offset, rounds_twice, device):
    x = (torch.randn(shape, device=device) * 3).to(dtype)
    weight = torch.randn(shape[1], device=device).to(dtype)
    y, nothing = rms_norm(x, weight, 1e-5, offset=offset, rounds_twice=rounds_twice)
    assert y.dtype is dtype and nothing is None
    assert error(y, rms_norm_reference(x, weight, 1e-5, offset)) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("pieces", [1, 3])
def test_quantizes_what_it_wrote(dtype, pieces, device, monkeypatch):
    if pieces > 1:
        monkeypatch.setattr(module, "MAX_BLOCK", 64)
    x, weight = (torch.randn(shape, device=device).to(dtype) for shape in ((4, 150), (150,)))
    y, rows = rms_norm(x, weight, 1e-6, pad_to=16)
    expected = quantize_activation(y, pad_to=16)
    assert rows.values.shape == (4, 160)
    assert all(
        torch.equal(getattr(rows, part), getattr(expected, part)) for part in ("values", "scale", "zero")
    )


def test_a_row_is_the_same_in_any_batch_and_read_where_it_lies(device):
    poisoned = torch.full((9, 200), float("nan"), device=device)
    x = poisoned[:, :120].copy_(torch.randn(9, 120))
    weight = torch.randn(120, device=device)
    whole = rms_norm(x, weight, 1e-6)[0]
    assert torch.isfinite(whole).all()
    assert torch.equal(rms_norm(x[3:4], weight, 1e-6)[0], whole[3:4])
    assert rms_norm(x[:0], weight, 1e-6)[0].shape == (0, 120)


def test_nan_shows_in_the_scale(device):
    x = torch.ones(2, 40, device=device)
    x[1, 7] = float("nan")
    _, rows = rms_norm(x, torch.ones(40, device=device), 1e-6, pad_to=16)
    assert torch.isfinite(rows.scale[0]).all() and torch.isnan(rows.scale[1]).all()


def test_arguments_that_do_not_fit_are_named(device):
    with pytest.raises(ValueError, match=r"weight has shape \[5\]; it must be \[6\]"):
        rms_norm(torch.ones(2, 6, device=device), torch.ones(5, device=device), 1e-6)
