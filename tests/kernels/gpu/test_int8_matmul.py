"""W8A8 on the GPU: equal to int64 arithmetic bit for bit, in any batch, by either kernel, and to what the CPU serves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from quantized_rows import quantized_rows

from penstock.kernels.cpu import int8_matmul as cpu
from penstock.kernels.gpu import int8_matmul as gpu
from penstock.kernels.gpu.int8_matmul import Int8Weight, int8_matmul, split_k, sum_rows
from penstock.kernels.quantized_rows import QuantizedRows
from penstock.kernels.reference.int8_matmul import int8_matmul_reference


def operands(m: int, n: int, k: int, device: torch.device) -> tuple[Any, ...]:
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8, device=device)
    weight_scale = torch.rand(n, device=device) + 0.01
    return quantized_rows(m, k, device), weight, weight_scale, sum_rows(weight, weight_scale)


def reference(
    x: QuantizedRows,
    weight: torch.Tensor,
    scale: torch.Tensor,
    _: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    return int8_matmul_reference(x, weight, scale, bias)


# (M, N, K): one row, odd everything, tile edges, several splits, several tiles in every direction
SIZES = [
    (1, 1, 2),
    (1, 7, 3),
    (3, 65, 31),
    (16, 64, 256),
    (17, 63, 257),
    (33, 130, 100),
    (64, 64, 1100),
    (65, 64, 128),
    (129, 131, 259),
    (300, 140, 64),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_int64_arithmetic(size, device):
    args = operands(*size, device)
    assert torch.equal(int8_matmul(*args), reference(*args))


@pytest.mark.parametrize("rows", [5, 70])
def test_bias_and_residual_are_rounded_one_after_the_other(rows, device):
    args = operands(rows, 40, 48, device)
    bias, residual = torch.randn(40, device=device), torch.randn(rows, 40, device=device)
    expected = reference(*args, bias) + residual
    assert torch.equal(int8_matmul(*args, bias, residual), expected)
    assert torch.equal(int8_matmul(*args, bias, out_dtype=torch.float16), reference(*args, bias).half())


def test_a_workspace_is_left_clean(device):
    for size in [(2, 64, 2048), (40, 200, 1024), (2, 64, 2048)]:
        args = operands(*size, device)
        assert torch.equal(int8_matmul(*args), reference(*args))
    sums, arrived = gpu._workspace.of(torch.empty(0, device=device).device, 0, 0)
    assert not sums.any() and not arrived.any()


def test_splits_depend_on_the_weight_alone():
    assert split_k(tiles=4, steps=64) == 32
    assert split_k(tiles=4, steps=3) == 1
    assert split_k(tiles=1000, steps=64) == 1


@pytest.mark.parametrize("shape", [(9, 16), (33, 70)], ids=str)
@pytest.mark.parametrize("rows", [1, 30, 66])
def test_serves_the_same_numbers_as_the_cpu(shape, rows, device):
    weight, x, bias = torch.randn(shape), torch.randn(rows, shape[1]) * 9, torch.randn(shape[0])
    expected = cpu.Int8Weight.quantize(weight).matmul(x, bias)
    found = Int8Weight.quantize(weight.to(device)).matmul(x.to(device), bias.to(device))
    assert torch.equal(found.cpu(), expected)


def test_an_empty_batch_and_sizes_beyond_exactness(device):
    args = operands(1, 5, 8, device)
    assert int8_matmul(args[0].of(slice(0)), *args[1:]).shape == (0, 5)
    wide = operands(1, 1, gpu.MAX_REDUCTION + 1, device)
    with pytest.raises(ValueError, match=f"K is {gpu.MAX_REDUCTION + 1}; .* only up to {gpu.MAX_REDUCTION}"):
        int8_matmul(*wide)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        ("values", torch.zeros(4, 8), "values is float32; it must be int8"),
        ("scale", torch.zeros(4), r"scale has shape \[4\]; it must be \[4, 1\]"),
        ("zero", torch.zeros(4, 1).int(), "zero is int32; it must be float32"),
        (1, torch.zeros(5, 7, dtype=torch.int8), r"weight has shape \[5, 7\]; it must be \[any, 8\]"),
        (1, torch.zeros(8, 5, dtype=torch.int8).t(), "weight has stride 5 in its last dimension"),
        (2, torch.zeros(6), r"weight_scale has shape \[6\]; it must be \[5\]"),
        (3, torch.zeros(6), r"weight_sum has shape \[6\]; it must be \[5\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(position, value, message, device):
    args = list(operands(4, 5, 8, device))
    if isinstance(position, str):
        args[0] = replace(args[0], **{position: value.to(device)})
    else:
        args[position] = value.to(device)
    with pytest.raises(ValueError, match=message):
        int8_matmul(*args)
