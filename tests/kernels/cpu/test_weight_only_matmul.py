"""W8A16 and W4A16 on a CPU: near float64, and a row never depends on its batch-mates."""

import pytest
import torch

from penstock.kernels.cpu.weight_only_matmul import Int4Weight, Int8WeightOnly
from penstock.kernels.quantize_weight import GROUP, pack_int4, quantize_weight
from penstock.kernels.reference.weight_only_matmul import weight_only_matmul_reference

KINDS = {Int8WeightOnly: (8, None), Int4Weight: (4, GROUP)}
SHAPES = [(1, 2), (33, 70), (64, 128), (100, 72), (200, 896), (896, 300)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 66])
def test_is_near_float64_of_the_same_integers(kind, shape, rows):
    torch.manual_seed(0)
    weight, x, bias = torch.randn(shape), torch.randn(rows, shape[1]), torch.randn(shape[0])
    found = kind.quantize(weight).matmul(x, bias)
    expected = weight_only_matmul_reference(x.bfloat16(), *quantize_weight(weight, *KINDS[kind]), bias)
    assert found.dtype is torch.float32 and found.shape == (rows, shape[0])
    assert float((found.double() - expected).norm() / expected.norm()) < 4e-3


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("group", [None, 32, 64, 128])
def test_stored_integers_and_scales_are_multiplied_with_as_they_are(group, scale_dtype):
    """Rows of a single 1 show every element of the weight that the product is of."""
    torch.manual_seed(0)
    kind, lowest = (Int8WeightOnly, -128) if group is None else (Int4Weight, -8)
    values = torch.randint(lowest, -lowest, (70, 384), dtype=torch.int8)
    scales = torch.rand(70, 384 // (group or 384)).to(scale_dtype).float()
    weight = kind.from_integers(values, scales)
    expected = weight_only_matmul_reference(torch.eye(384), values, scales)
    found = weight.matmul(torch.eye(384)).double()
    # What torch gives is rounded to bf16; nothing else is.
    assert ((found - expected).abs() <= 2.0**-8 * expected.abs()).all()


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("group", "columns"), [(32, 96), (64, 384), (128, 384)])
def test_zero_points_are_multiplied_with_as_they_are(group, columns, scale_dtype):
    torch.manual_seed(0)
    values = torch.randint(-8, 8, (70, columns), dtype=torch.int8)
    zeros = torch.randint(-8, 8, (70, columns // group), dtype=torch.int8)
    scales = torch.rand(70, columns // group).to(scale_dtype).float()
    weight = Int4Weight.from_integers(values, scales, zeros)
    x = torch.eye(columns)
    expected = weight_only_matmul_reference(x, values, scales, zeros=zeros)
    found = weight.matmul(x).double()
    # Beside what torch rounds to bf16, of each product that it adds up: two, or three, of up to 8 or 15 times the scale.
    spread = 2.0**-8 * 8 * scales.double().repeat_interleave(group, dim=1).t()
    assert (
        (found - expected).abs() <= 2.0**-8 * expected.abs() + spread * (len(weight.scales_and_zeros) > 1)
    ).all()
    rows = torch.randn(40, columns)
    assert torch.equal(weight.matmul(rows)[3:5], weight.matmul(rows[3:5]))


def test_zero_points_of_few_bits_cost_one_product():
    values, zeros = torch.zeros(64, 128, dtype=torch.int8), torch.full((64, 4), -7, dtype=torch.int8)
    scales = torch.full((64, 4), 31 / 32)
    assert len(Int4Weight.from_integers(values, scales, zeros).scales_and_zeros) == 1
    assert len(Int4Weight.from_integers(values, scales * 255 / 248, zeros).scales_and_zeros) == 2


@pytest.mark.parametrize("group", [32, 64, 128])
def test_other_groups_are_near_float64_in_any_batch(group):
    torch.manual_seed(0)
    quantized, scales = quantize_weight(torch.randn(100, 384), 4, group)
    weight = Int4Weight.from_integers(quantized, scales)
    x = torch.randn(40, 384)
    whole = weight.matmul(x)
    expected = weight_only_matmul_reference(x.bfloat16(), quantized, scales)
    assert float((whole.double() - expected).norm() / expected.norm()) < 4e-3
    assert torch.equal(weight.matmul(x[3:5]), whole[3:5])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_any_batch(kind):
    torch.manual_seed(0)
    weight, x = kind.quantize(torch.randn(130, 520)), torch.randn(150, 520)
    whole = weight.matmul(x)
    for rows in (slice(0, 1), slice(40, 43), slice(7, 23), slice(80, 144)):
        assert torch.equal(weight.matmul(x[rows]), whole[rows])
    assert weight.matmul(x[:0]).shape == (0, 130)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_errs_by_half_a_step_at_most(bits):
    torch.manual_seed(0)
    weight = torch.randn(7, 300)
    weight[3] = 0
    quantized, scales = quantize_weight(weight, bits, GROUP)
    assert quantized.shape == (7, 384) and scales.shape == (7, 3) and not quantized[:, 300:].any()
    assert torch.equal(scales, scales.bfloat16().float())
    error = quantized.view(7, 3, -1) * scales[..., None] - torch.nn.functional.pad(weight, (0, 84)).view(
        7, 3, -1
    )
    # Half a step, and what the largest value loses where its scale was rounded down.
    assert (error.abs() <= 0.5 * scales[..., None] + 2.0**-8 * weight.abs().max()).all()


def test_packing_keeps_every_element():
    quantized = torch.randint(-8, 8, (3, 256), dtype=torch.int8)
    packed = pack_int4(quantized)
    low, high = (packed & 15).to(torch.int8) - 8, (packed >> 4).to(torch.int8) - 8
    for group in range(2):
        own = slice(group * 64, group * 64 + 64)
        assert torch.equal(
            torch.cat([low[:, own], high[:, own]], 1), quantized[:, group * 128 : group * 128 + 128]
        )
