"""W8A16 and W4A16 on the GPU: near float64, the same bits in any batch, the same integers as the CPU's."""

import pytest
import torch

from penstock.kernels.cpu import weight_only_matmul as cpu
from penstock.kernels.gpu import weight_only_matmul as gpu
from penstock.kernels.gpu.weight_only_matmul import weight_only_matmul
from penstock.kernels.quantize_weight import GROUP, GROUPS, pack_int4, quantize_weight
from penstock.kernels.reference.weight_only_matmul import weight_only_matmul_reference

# (M, N, K): one row, odd everything, group edges, several parts, several tiles
SIZES = [
    (1, 1, 2),
    (3, 65, 31),
    (16, 64, 128),
    (17, 63, 130),
    (33, 130, 700),
    (65, 64, 128),
    (140, 131, 1100),
]
ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BITS = [8, 4]


def operands(bits: int, n: int, k: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The integers, what the kernel takes of them, and the scales."""
    quantized, scales = quantize_weight(torch.randn(n, k, device=device), bits, GROUP if bits == 4 else None)
    return quantized, pack_int4(quantized) if bits == 4 else quantized, scales


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_near_float64(size, bits, device):
    m, n, k = size
    quantized, weight, scales = operands(bits, n, k, device)
    x = torch.randn(m, k, device=device)
    assert (
        relative(weight_only_matmul(x, weight, scales), weight_only_matmul_reference(x, quantized, scales))
        < 1e-5
    )


@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("m", "n", "groups"), [(3, 65, 3), (17, 40, 5), (70, 66, 7)])
def test_groups_of_every_size_are_near_float64(m, n, groups, group, has_zeros, device):
    k = groups * group
    values = torch.randint(-8, 8, (n, k), dtype=torch.int8, device=device)
    scales = torch.rand(n, groups, device=device)
    zeros = torch.randint(-8, 8, (n, groups), dtype=torch.int8, device=device) if has_zeros else None
    weight = gpu.Int4Weight.from_integers(values, scales, zeros)
    x = torch.randn(m, k, device=device)
    whole = weight.matmul(x)
    assert relative(whole, weight_only_matmul_reference(x, values, scales, zeros=zeros)) < 1e-5
    assert torch.equal(weight.matmul(x[1:2]), whole[1:2])


def test_stored_channels_are_near_float64(device):
    values = torch.randint(-128, 128, (33, 70), dtype=torch.int8, device=device)
    scales, x = torch.rand(33, 1, device=device), torch.randn(5, 70, device=device)
    found = gpu.Int8WeightOnly.from_integers(values, scales).matmul(x)
    assert relative(found, weight_only_matmul_reference(x, values, scales)) < 1e-5


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_every_type_with_bias_and_residual(dtype, bits, device):
    quantized, weight, scales = operands(bits, 70, 300, device)
    x, residual = torch.randn(20, 300, device=device).to(dtype), torch.randn(20, 70, device=device).to(dtype)
    bias = torch.randn(70, device=device)
    found = weight_only_matmul(x, weight, scales, bias, residual)
    assert found.dtype is dtype
    expected = weight_only_matmul_reference(x, quantized, scales, bias) + residual.double()
    assert relative(found, expected) < ERRORS[dtype]


def test_arrival_counts_are_left_at_zero(device):
    _, weight, scales = operands(8, 64, 2048, device)
    x = torch.randn(2, 2048, device=device)
    assert torch.equal(weight_only_matmul(x, weight, scales), weight_only_matmul(x, weight, scales))
    assert not gpu._workspace.of(x.device, 0, 0)[1].any()


@pytest.mark.parametrize("name", ["Int8WeightOnly", "Int4Weight"])
@pytest.mark.parametrize("shape", [(9, 16), (96, 300)], ids=str)
def test_serves_what_the_cpu_does(name, shape, device):
    weight, x, bias = torch.randn(shape), torch.randn(30, shape[1]), torch.randn(shape[0])
    expected = getattr(cpu, name).quantize(weight).matmul(x, bias)
    found = getattr(gpu, name).quantize(weight.to(device)).matmul(x.to(device).bfloat16(), bias.to(device))
    assert relative(found.cpu(), expected.double()) < 1e-2


def test_poisoned_memory_and_empty_batches(device):
    quantized, weight, scales = operands(4, 40, 200, device)
    wide = torch.full((5, 256), float("nan"), device=device)
    x = wide[:, :200].copy_(torch.randn(5, 200))
    found = weight_only_matmul(x, weight, scales)
    assert relative(found, weight_only_matmul_reference(x, quantized, scales)) < 1e-5
    assert weight_only_matmul(x[:0], weight, scales).shape == (0, 40)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(4, 8, dtype=torch.int8), "x is int8; it must be float32 or float16 or bfloat16"),
        (1, torch.zeros(5, 100, dtype=torch.int8), r"weight has shape \[5, 100\]; it must be \[5, 128\]"),
        (1, torch.zeros(5, 128, dtype=torch.uint8), r"weight has shape \[5, 128\]; it must be \[5, 64\]"),
        (2, torch.zeros(5, 2), r"scales has shape \[5, 2\]; it must be \[5, 1\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(position, value, message, device):
    args = [torch.zeros(4, 8, device=device), *operands(8, 5, 8, device)[1:]]
    args[position] = value.to(device)
    with pytest.raises(ValueError, match=message):
        weight_only_matmul(*args)


def test_eight_bits_have_no_zero_points(device):
    _, weight, scales = operands(8, 5, 8, device)
    with pytest.raises(ValueError, match="zeros has shape"):
        weight_only_matmul(
            torch.zeros(4, 8, device=device), weight, scales, zeros=torch.zeros(5, 1, dtype=torch.int8)
        )
