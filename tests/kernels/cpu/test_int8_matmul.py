"""W8A8 matmul equals its integer reference bit for bit, whatever the path, the size or the batch."""

import pytest
import torch

from penstock.kernels.cpu import int8_matmul as kernel
from penstock.kernels.cpu import int8_product
from penstock.kernels.cpu.int8_matmul import (
    MAX_REDUCTION,
    SMALL_WEIGHT,
    Int8Weight,
    int8_matmul,
    quantize_weight,
)
from penstock.kernels.quantized_rows import quantize_rows
from penstock.kernels.reference.int8_matmul import int8_matmul_reference

SIZES = [(1, 2), (1, 7), (7, 2), (5, 3), (17, 31), (33, 64), (64, 33), (127, 129), (320, 64), (100, 1000)]
ROWS = [1, 2, 3, 4, 5, 7, 16, 17, 33, 64]
LARGE = (1030, 1031)  # above SMALL_WEIGHT: the packed form, at odd sizes


@pytest.fixture(params=["native", "torch", "floats"], autouse=True)
def served_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By our library where it can be had, by torch's operators, and in float32 where torch has none for bytes."""
    if request.param != "native":
        monkeypatch.setattr(kernel, "library", lambda: None)
        monkeypatch.setattr(int8_product, "_torch_multiplies_bytes", lambda: request.param == "torch")
    elif kernel.library() is None:
        pytest.skip("no compiler, or no AVX2")
    return request.param


def pack_weight(plain: torch.Tensor, scale: torch.Tensor, *, keep_plain: bool) -> Int8Weight:
    weight = Int8Weight.of(plain, scale)
    weight.pack(keep_plain=keep_plain)
    return weight


def weight_of(
    shape: tuple[int, int], *, keep_plain: bool = True
) -> tuple[torch.Tensor, torch.Tensor, Int8Weight]:
    plain, scale = quantize_weight(torch.randn(shape))
    return plain, scale, pack_weight(plain, scale, keep_plain=keep_plain)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_reference_exactly(shape: tuple[int, int], with_bias: bool):
    torch.manual_seed(sum(shape))
    plain, scale, weight = weight_of(shape)
    bias = torch.randn(shape[0]) if with_bias else None
    for rows in ROWS:
        x = torch.randn(rows, shape[1]) * torch.rand(rows, 1) * 100
        assert torch.equal(
            int8_matmul(x, weight, bias), int8_matmul_reference(quantize_rows(x), plain, scale, bias)
        )


@pytest.mark.parametrize("keep_plain", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_reference_in_every_kept_form(keep_plain: bool, with_bias: bool, served_by: str):
    torch.manual_seed(0)
    plain, scale, weight = weight_of(LARGE, keep_plain=keep_plain)
    assert plain.numel() > SMALL_WEIGHT
    assert (weight.native is not None) == (served_by == "native")
    if weight.native is None and kernel._onednn_is_exact():
        assert weight.packed is not None and (weight.plain is not None) == keep_plain
    bias = torch.randn(LARGE[0]) if with_bias else None
    for rows in (1, 2, 5, 33, 130):
        x = torch.randn(rows, LARGE[1])
        assert torch.equal(
            int8_matmul(x, weight, bias), int8_matmul_reference(quantize_rows(x), plain, scale, bias)
        )


@pytest.mark.parametrize(
    ("shape", "keep_plain"), [((100, 1000), True), (LARGE, True), (LARGE, False)], ids=str
)
def test_a_row_is_the_same_in_any_batch(shape: tuple[int, int], keep_plain: bool):
    torch.manual_seed(1)
    _, _, weight = weight_of(shape, keep_plain=keep_plain)
    x = torch.randn(70, shape[1])
    whole = int8_matmul(x, weight, torch.ones(shape[0]))
    for first, last in ((0, 1), (1, 2), (69, 70), (3, 5), (0, 33), (32, 70)):
        assert torch.equal(int8_matmul(x[first:last], weight, torch.ones(shape[0])), whole[first:last])


@pytest.mark.parametrize("shape", [(64, 640), LARGE], ids=str)
def test_the_largest_sums_are_exact(shape: tuple[int, int]):
    """Every product at its extreme and of one sign: where int16 intermediates would saturate."""
    for sign in (1, -1):
        plain = torch.full(shape, sign * 127, dtype=torch.int8)
        scale = torch.ones(shape[0])
        weight = pack_weight(plain, scale, keep_plain=False)
        x = torch.full((4, shape[1]), 3.0)
        assert torch.equal(int8_matmul(x, weight), int8_matmul_reference(quantize_rows(x), plain, scale))


def test_zeros_and_empty_batches():
    _, _, weight = weight_of((5, 8))
    assert torch.equal(int8_matmul(torch.zeros(3, 8), weight), torch.zeros(3, 5))
    assert int8_matmul(torch.empty(0, 8), weight).shape == (0, 5)
    plain, scale = quantize_weight(torch.zeros(5, 8))
    assert torch.equal(
        int8_matmul(torch.randn(2, 8), pack_weight(plain, scale, keep_plain=True)), torch.zeros(2, 5)
    )


def test_inputs_of_other_dtypes_and_strides():
    plain, scale, weight = weight_of((9, 16))
    x = torch.randn(6, 32)[:, ::2]
    assert torch.equal(
        int8_matmul(x, weight), int8_matmul_reference(quantize_rows(x.contiguous()), plain, scale)
    )
    half = torch.randn(6, 16).bfloat16()
    assert torch.equal(
        int8_matmul(half, weight), int8_matmul_reference(quantize_rows(half.float()), plain, scale)
    )


def test_quantization_errs_by_at_most_half_a_step():
    torch.manual_seed(2)
    original = torch.randn(40, 50)
    plain, scale = quantize_weight(original.clone())
    assert plain.abs().max() == 127
    assert ((plain.float() * scale[:, None] - original).abs() <= scale[:, None] * 0.5001).all()
    original[:, 0] = 0
    for x in (original, original.abs(), -original.abs()):
        rows = quantize_rows(x)
        assert ((rows.dequantized() - x).abs() <= rows.scale * 0.5001).all()
        assert rows.scale.allclose((x.amax(1, keepdim=True) - x.amin(1, keepdim=True)) / 255)
        assert torch.equal(rows.values[:, :1].float(), rows.zero)
        assert (rows.values.amin(dim=1) == -128).all() and (rows.values.amax(dim=1) >= 126).all()


def test_quantizing_leaves_the_original_alone():
    for original in (torch.randn(8, 4), torch.randn(4, 8).t(), torch.randn(8, 4).bfloat16()):
        before = original.clone()
        quantize_weight(original)
        assert torch.equal(original, before)


def test_the_result_is_close_to_the_float_product():
    torch.manual_seed(3)
    original, x = torch.randn(64, 256), torch.randn(32, 256)
    plain, scale = quantize_weight(original.clone())
    exact = x @ original.t()
    error = (int8_matmul(x, pack_weight(plain, scale, keep_plain=True)) - exact).norm() / exact.norm()
    assert error < 0.015


def test_a_reduction_beyond_int32_is_refused():
    too_long = MAX_REDUCTION + 1
    with pytest.raises(ValueError, match=rf"{too_long}.*{MAX_REDUCTION}"):
        pack_weight(torch.zeros(1, too_long, dtype=torch.int8), torch.ones(1), keep_plain=True)


def test_a_reduction_of_one_is_refused():
    with pytest.raises(ValueError, match="K is 1"):
        pack_weight(torch.zeros(7, 1, dtype=torch.int8), torch.ones(7), keep_plain=True)


def test_a_row_with_nan_does_not_look_healthy():
    """A broken activation must stay visible: its sequence is ended, not answered with noise."""
    _, _, weight = weight_of((5, 8))
    for broken in (float("nan"), float("inf")):
        x = torch.randn(3, 8)
        x[1, 2] = broken
        out = int8_matmul(x, weight)
        assert not torch.isfinite(out[1]).any()
        assert torch.isfinite(out[[0, 2]]).all()
