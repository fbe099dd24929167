"""Quantizing on the GPU gives the integers and scales that it gives on a CPU, bit for bit."""

import pytest
import torch

from penstock.kernels.cpu.int8_matmul import quantize_activation as on_cpu
from penstock.kernels.gpu import quantize_activation as module
from penstock.kernels.gpu.quantize_activation import quantize_activation


@pytest.mark.parametrize("width", [1, 7, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_cpu_bit_for_bit(width, dtype, device):
    x = (torch.randn(9, width) * torch.rand(9, 1) * 1000).to(dtype)
    x[3] = 0
    quantized, scale = quantize_activation(x.to(device))
    expected, expected_scale = on_cpu(x)
    assert torch.equal(quantized.cpu(), expected) and torch.equal(scale.cpu(), expected_scale)


def test_halves_go_to_the_even_neighbour(device):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5]], device=device)
    assert quantize_activation(x)[0].tolist() == [[127, 0, 2, 2, 0, -2, 126]]


def test_wide_rows_are_read_in_pieces(device, monkeypatch):
    x = torch.randn(3, 150)
    monkeypatch.setattr(module, "MAX_BLOCK", 64)
    quantized, scale = quantize_activation(x.to(device), pad_to=16)
    expected, expected_scale = on_cpu(x)
    assert quantized.shape == (3, 160) and not quantized[:, 150:].any()
    assert torch.equal(quantized[:, :150].cpu(), expected) and torch.equal(scale.cpu(), expected_scale)


def test_a_broken_row_shows_and_spoils_no_other(device):
    x = torch.randn(4, 20, device=device)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    _, scale = quantize_activation(x)
    assert torch.isnan(scale[:, 0]).tolist() == [False, True, True, False]


def test_rows_of_a_larger_tensor_and_none_at_all(device):
    x = torch.randn(6, 40, device=device)[:, :24]
    assert torch.equal(quantize_activation(x)[0], quantize_activation(x.contiguous())[0])
    assert quantize_activation(x[:0])[0].shape == (0, 24)
    with pytest.raises(ValueError, match="x is int32; it must be float32 or float16 or bfloat16"):
        quantize_activation(x.int())
