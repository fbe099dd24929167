"""Rounding by itself, and with each column's error made up for by the rest."""

import pytest
import torch
from torch import Tensor

from penstock.compress.quantize.gptq import DAMPING, gptq
from penstock.compress.quantize.precision import Precision, fitting
from penstock.compress.quantize.rounding import dequantized, round_to_nearest, scales_of

PRECISIONS = [Precision("w8a16"), Precision("w8a8"), Precision("w4a16", 32), Precision("w4a16", 64)]


def weight_and_inputs(columns: int = 128) -> tuple[Tensor, Tensor]:
    """Rows of inputs that go together, of which some are much larger than others."""
    draw = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=draw) / columns**0.5
    inputs = torch.randn(400, columns, generator=draw) @ (mixing + torch.eye(columns))
    return torch.randn(24, columns, generator=draw), inputs * torch.rand(columns, generator=draw) * 3


def slow_gptq(weight: Tensor, hessian: Tensor, scales: Tensor, precision: Precision) -> Tensor:
    """Optimal brain quantization as it is defined: after each column the inverse Hessian of those left, and no other order
    than the largest diagonal first."""
    hessian = hessian.double() + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
    order = hessian.diagonal().argsort(descending=True, stable=True)
    rest, integers = weight.double().clone(), torch.zeros_like(weight)
    left = order.tolist()
    group = precision.group or weight.shape[1]
    while left:
        inverse = torch.linalg.inv(hessian[left][:, left])
        column, *others = left
        scale = scales[:, column // group].double()
        integers[:, column] = (
            (rest[:, column] / scale).round().clamp(-precision.most - 1, precision.most).float()
        )
        error = (rest[:, column] - integers[:, column] * scale) / inverse[0, 0]
        rest[:, others] -= error[:, None] * inverse[0, 1:]
        left = others
    return integers


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_integers_and_scales_are_what_kernels_take(precision: Precision) -> None:
    weight, inputs = weight_and_inputs()
    found = gptq(weight, inputs.t() @ inputs, precision)
    assert found is not None
    integers, scales = found
    assert torch.equal(scales, scales.bfloat16().float())
    assert torch.equal(integers, integers.round())
    assert integers.min() >= -precision.most - 1 and integers.max() <= precision.most


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_it_lowers_the_error_of_outputs_by_a_third_at_least(precision: Precision) -> None:
    weight, inputs = weight_and_inputs()
    wanted = inputs @ weight.t()
    scales = scales_of(weight, precision)
    nearest = dequantized(round_to_nearest(weight, scales, precision), scales)
    found = gptq(weight, inputs.t() @ inputs, precision)
    assert found is not None
    errors = [(inputs @ rounded.t() - wanted).norm() for rounded in (nearest, dequantized(*found))]
    assert errors[1] < errors[0] * 2 / 3


def test_it_is_the_algorithm_of_the_paper() -> None:
    weight, inputs = weight_and_inputs(64)
    precision = Precision("w4a16", 32)
    hessian = inputs.t() @ inputs
    found = gptq(weight, hessian, precision)
    assert found is not None
    expected = slow_gptq(weight, hessian, found[1], precision)
    # A number halfway between two integers may fall either way, and those after it with it.
    assert (found[0] != expected).float().mean() < 0.02


def test_independent_columns_are_rounded_to_nearest() -> None:
    weight, _ = weight_and_inputs()
    precision = Precision("w4a16", 32)
    found = gptq(weight, torch.eye(128), precision)
    assert found is not None
    assert torch.equal(found[0], round_to_nearest(weight, found[1], precision))


def test_a_channel_that_is_never_used_costs_nothing_and_breaks_nothing() -> None:
    weight, inputs = weight_and_inputs()
    inputs[:, 5] = 0
    found = gptq(weight, inputs.t() @ inputs, Precision("w4a16", 32))
    assert found is not None and bool(found[0].isfinite().all())


def test_of_a_hessian_that_is_none_there_is_no_answer() -> None:
    weight, _ = weight_and_inputs()
    assert gptq(weight, -torch.eye(128), Precision("w8a16")) is None


def test_clipping_weighs_errors_by_importance() -> None:
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(8, 64, generator=draw)
    weight[:, 3] = 6.0  # seldom used
    importance = torch.ones(64)
    importance[3] = 1e-4
    precision = Precision("w4a16", 64)

    def error(scales: Tensor) -> float:
        rounded = dequantized(round_to_nearest(weight, scales, precision), scales)
        return float(((rounded - weight).square() * importance).sum())

    plain, clipped = scales_of(weight, precision), scales_of(weight, precision, importance)
    assert bool((clipped <= plain).all()) and bool((clipped < plain).any())
    assert error(clipped) < 0.8 * error(plain)


@pytest.mark.parametrize(
    ("columns", "group", "used"),
    [
        (256, 128, Precision("w4a16", 128)),
        (192, 128, Precision("w4a16", 64)),
        (96, 64, Precision("w4a16", 32)),
        (100, 32, Precision("w8a16")),
    ],
)
def test_four_bits_take_the_largest_groups_that_fit(columns: int, group: int, used: Precision) -> None:
    assert fitting("w4a16", group, columns) == used


def test_bytes_are_those_of_the_file() -> None:
    assert Precision("w8a8").bytes_of(10, 64) == 640 + 20
    assert Precision("w4a16", 32).bytes_of(10, 64) == 320 + 40
