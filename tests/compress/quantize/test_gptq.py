"""Rounding by itself, and with each column's error made up for by the rest."""

import pytest
import torch
from torch import Tensor

from penstock.compress.quantize.gptq import DAMPING, gptq, made_up
from penstock.compress.quantize.precision import Precision, fitting
from penstock.compress.quantize.rounding import Grid, dequantized, grid_of, round_to_nearest

ZEROS = Precision("w4a16", 32, has_zeros=True)
PRECISIONS = [Precision("w8a16"), Precision("w8a8"), Precision("w4a16", 64), ZEROS]


def weight_and_inputs(columns: int = 128) -> tuple[Tensor, Tensor]:
    """Rows of inputs that go together, of which some are much larger than others."""
    draw = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=draw) / columns**0.5
    inputs = torch.randn(400, columns, generator=draw) @ (mixing + torch.eye(columns))
    return torch.randn(24, columns, generator=draw), inputs * torch.rand(columns, generator=draw) * 3


def slow_gptq(weight: Tensor, hessian: Tensor, grid: Grid, group: int) -> Tensor:
    """Optimal brain quantization as it is defined: after each column the inverse Hessian of those left, and no other order
    than the largest diagonal first."""
    hessian = hessian.double() + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
    order = hessian.diagonal().argsort(descending=True, stable=True)
    rest, multiples = weight.double().clone(), torch.zeros_like(weight)
    left = order.tolist()
    while left:
        inverse = torch.linalg.inv(hessian[left][:, left])
        column, *others = left
        own = column // group
        scale, lowest = grid.scales[:, own].double(), grid.lowest[:, own]
        nearest = (rest[:, column] / scale).round().float()
        multiples[:, column] = nearest.clamp(lowest, lowest + grid.steps)
        error = (rest[:, column] - multiples[:, column] * scale) / inverse[0, 0]
        rest[:, others] -= error[:, None] * inverse[0, 1:]
        left = others
    return multiples


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_integers_and_scales_are_what_kernels_take(precision: Precision) -> None:
    weight, inputs = weight_and_inputs()
    found = gptq(weight, inputs.t() @ inputs, precision)
    assert found is not None
    multiples, grid = found
    assert torch.equal(grid.scales, grid.scales.bfloat16().float())
    assert torch.equal(multiples, multiples.round())
    above = multiples.view(*grid.scales.shape, -1) - grid.lowest[..., None]
    assert above.min() == 0 and above.max() == 2**precision.bits - 1


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_it_lowers_the_error_of_outputs_by_a_third_at_least(precision: Precision) -> None:
    weight, inputs = weight_and_inputs()
    wanted = inputs @ weight.t()
    grid = grid_of(weight, precision)
    nearest = dequantized(round_to_nearest(weight, grid), grid)
    found = gptq(weight, inputs.t() @ inputs, precision)
    assert found is not None
    errors = [(inputs @ rounded.t() - wanted).norm() for rounded in (nearest, dequantized(*found))]
    assert errors[1] < errors[0] * 2 / 3


def test_before_columns_are_rounded_again_it_is_the_algorithm_of_the_paper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.compress.quantize.gptq.SWEEPS", 0)
    weight, inputs = weight_and_inputs(64)
    precision = ZEROS
    hessian = inputs.t() @ inputs
    found = gptq(weight, hessian, precision)
    assert found is not None
    expected = slow_gptq(weight, hessian, found[1], 32)
    # A number halfway between two integers may fall either way, and those after it with it.
    assert (found[0] != expected).float().mean() < 0.02


def test_columns_are_rounded_again_until_none_alone_could_be_better(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = weight_and_inputs()
    precision = ZEROS
    hessian = inputs.t() @ inputs
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(128)

    def cost(multiples: Tensor, grid: Grid) -> Tensor:
        """Of each row."""
        error = dequantized(multiples, grid) - weight
        return (error @ damped * error).sum(dim=1)

    costs = []
    for sweeps in (0, 1, 30):
        monkeypatch.setattr("penstock.compress.quantize.gptq.SWEEPS", sweeps)
        found = gptq(weight, hessian, precision)
        assert found is not None
        costs.append(cost(*found))
    assert bool((costs[1] <= costs[0] * 1.0001).all()) and bool((costs[2] <= costs[1] * 1.0001).all())
    assert float(costs[1].sum()) < 0.985 * float(costs[0].sum())
    multiples, grid = found
    lowest, highest = (own.repeat_interleave(32, dim=1) for own in (grid.lowest, grid.highest))
    for column in range(128):
        for step in (-1, 1):
            other = multiples.clone()
            other[:, column] = (other[:, column] + step).clamp(lowest[:, column], highest[:, column])
            assert bool((cost(other, grid) >= costs[2] * 0.9999).all())


def test_what_inputs_are_off_by_is_made_up_for() -> None:
    """Inputs that lost a part of what they should be, which can be told from what is left of them."""
    weight, right = weight_and_inputs()
    draw = torch.Generator().manual_seed(4)
    off = torch.eye(128) + 0.1 * torch.randn(128, 128, generator=draw) / 128**0.5
    inputs = right @ off + 0.01 * torch.randn(right.shape, generator=draw)
    hessian, drift = inputs.t() @ inputs, (right - inputs).t() @ inputs
    wanted = right @ weight.t()

    def error(given: Tensor) -> float:
        return float((inputs @ given.t() - wanted).norm() / wanted.norm())

    assert error(made_up(weight, hessian, drift)) < 0.6 * error(weight)
    assert torch.equal(made_up(weight, hessian, torch.zeros(128, 128)), weight)
    assert torch.equal(made_up(weight, -torch.eye(128), drift), weight)


def test_independent_columns_are_rounded_to_nearest() -> None:
    weight, _ = weight_and_inputs()
    precision = Precision("w4a16", 32)
    found = gptq(weight, torch.eye(128), precision)
    assert found is not None
    assert torch.equal(found[0], round_to_nearest(weight, found[1]))


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

    def error(grid: Grid) -> float:
        rounded = dequantized(round_to_nearest(weight, grid), grid)
        return float(((rounded - weight).square() * importance).sum())

    plain, clipped = grid_of(weight, precision), grid_of(weight, precision, importance)
    assert bool((clipped.scales <= plain.scales).all()) and bool((clipped.scales < plain.scales).any())
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
    assert ZEROS.bytes_of(10, 64) == 320 + 40 + 10


def test_groups_with_zeros_of_their_own_waste_no_integer() -> None:
    """Weights on one side of zero: around it half of the integers would stand for nothing."""
    weight = torch.rand(16, 128, generator=torch.Generator().manual_seed(3))
    grid = grid_of(weight, ZEROS)
    assert bool((grid.lowest == 0).all()) and bool((grid.highest == 15).all())
    error = (dequantized(round_to_nearest(weight, grid), grid) - weight).abs().view(16, 4, 32)
    assert bool((error <= 0.55 * weight.view(16, 4, 32).amax(dim=2, keepdim=True) / 15).all())


def test_zeros_times_scales_are_bf16_numbers() -> None:
    weight, _ = weight_and_inputs()
    grid = grid_of(weight, ZEROS, torch.ones(128))
    added = (8 + grid.lowest) * grid.scales
    assert bool(added.any()) and torch.equal(added, added.bfloat16().float())
