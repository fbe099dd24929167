"""Quantizing on the GPU gives the integers and scales that it gives on a CPU, bit for bit."""

import pytest
import torch

from penstock.kernels.cpu.int8_matmul import quantize_weight as weight_on_cpu
from penstock.kernels.gpu import quantize_activation as module
from penstock.kernels.gpu.quantize_activation import quantize_activation, quantize_weight
from penstock.kernels.quantized_rows import QuantizedRows, quantize_rows


def equal(rows: QuantizedRows, expected: QuantizedRows) -> bool:
    """What is behind the values of `expected` may be anything."""
    values = rows.values[:, : expected.values.shape[1]].cpu()
    return (
        torch.equal(values, expected.values)
        and torch.equal(rows.scale.cpu(), expected.scale)
        and torch.equal(rows.zero.cpu(), expected.zero)
    )


@pytest.mark.parametrize("width", [1, 7, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_cpu_bit_for_bit(width, dtype, device):
    x = (torch.randn(9, width) * torch.rand(9, 1) * 1000).to(dtype)
    x[3], x[4], x[5] = 0, x[4].abs(), -x[5].abs()
    assert equal(quantize_activation(x.to(device)), quantize_rows(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_equals_the_cpus_bit_for_bit(dtype, device, monkeypatch):
    weight = (torch.randn(9, 150) * torch.rand(9, 1)).to(dtype)
    weight[3] = 0
    expected, expected_scale = weight_on_cpu(weight)
    for most in (module.MAX_BLOCK, 64):
        monkeypatch.setattr(module, "MAX_BLOCK", most)
        quantized, scale = quantize_weight(weight.to(device), pad_to=16)
        assert quantized.shape == (9, 160) and not quantized[:, 150:].any()
        assert torch.equal(quantized[:, :150].cpu(), expected) and torch.equal(
            scale[:, 0].cpu(), expected_scale
        )


def test_halves_go_to_the_even_neighbour(device):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -128.0]], device=device)
    rows = quantize_activation(x)
    assert rows.values.tolist() == [[127, 0, 2, 2, 0, -2, 126, -128]] and rows.zero.tolist() == [[0]]
    # 127.5 steps and -127.5 are both 128 to the nearest even, which is one step more than there are.
    assert quantize_activation(torch.tensor([[127.5, -127.5]], device=device)).values.tolist() == [
        [127, -128]
    ]


def test_wide_rows_are_read_in_pieces(device, monkeypatch):
    x = torch.randn(3, 150)
    monkeypatch.setattr(module, "MAX_BLOCK", 64)
    rows = quantize_activation(x.to(device), pad_to=16)
    assert rows.values.shape == (3, 160)
    assert equal(rows, quantize_rows(x))


def test_a_broken_row_shows_and_spoils_no_other(device, monkeypatch):
    x = torch.randn(4, 20, device=device)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    for pieces in (1, 2):
        monkeypatch.setattr(module, "MAX_BLOCK", 32 // pieces)
        scale = quantize_activation(x).scale
        assert torch.isnan(scale[:, 0]).tolist() == [False, True, True, False]


def test_rows_of_a_larger_tensor_and_none_at_all(device):
    x = torch.randn(6, 40, device=device)[:, :24]
    assert equal(quantize_activation(x), quantize_rows(x.cpu()))
    assert quantize_activation(x[:0]).values.shape == (0, 24)
    with pytest.raises(ValueError, match="x is int32; it must be float32 or float16 or bfloat16"):
        quantize_activation(x.int())
