"""Experts' W8A8 on the GPU: each row equals int64 arithmetic and `int8_matmul` with its expert's weight, bit for bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from quantized_rows import quantized_rows

from penstock.kernels.cpu import grouped_int8_matmul as cpu
from penstock.kernels.gpu import grouped_int8_matmul as gpu
from penstock.kernels.gpu.grouped_int8_matmul import GroupedInt8Weight, grouped_int8_matmul, most_tiles
from penstock.kernels.gpu.int8_matmul import int8_matmul, sum_rows
from penstock.kernels.reference.grouped_int8_matmul import grouped_int8_matmul_reference
from penstock.kernels.routing import Routing


def operands(t: int, n: int, k: int, counts: list[int], device: torch.device) -> tuple[Any, ...]:
    experts = len(counts)
    weight = torch.randint(-128, 128, (experts, n, k), dtype=torch.int8, device=device)
    weight_scale = torch.rand(experts, n, device=device) + 0.01
    offsets = torch.tensor([0, *counts], device=device).cumsum(0).int()
    return quantized_rows(t, k, device), weight, weight_scale, sum_rows(weight, weight_scale), offsets


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN."""
    empty = torch.empty

    def filled(*args: object, **kwargs: object) -> torch.Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", filled)


# (N, K, rows of each expert): odd everything, experts without rows at the ends and between, all rows of one, one row,
# tile edges on both sides, and enough rows for the large tiles
CASES = [
    (7, 3, [1]),
    (65, 31, [3, 0, 2, 5]),
    (63, 257, [0, 16, 17, 0]),
    (64, 256, [0, 0, 40, 0, 0]),
    (40, 100, [0, 0, 0, 1, 0, 0, 0]),
    (130, 48, [15, 33, 1]),
    (131, 259, [129, 0, 3]),
    (70, 64, [0, 200]),
    (33, 128, [128, 70, 1]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("gathers", [False, True])
def test_equals_int64_arithmetic(case, gathers, device):
    n, k, counts = case
    rows = sum(counts)
    tokens = torch.randint(0, 5, (rows,), dtype=torch.int32, device=device) if gathers else None
    args = operands(5 if gathers else rows, n, k, counts, device)
    x, weight, weight_scale, _, offsets = args
    bias = torch.randn(len(counts), n, device=device)
    expected = grouped_int8_matmul_reference(x, weight, weight_scale, offsets, tokens)
    assert torch.equal(grouped_int8_matmul(*args, tokens), expected)
    expected = grouped_int8_matmul_reference(x, weight, weight_scale, offsets, tokens, bias)
    assert torch.equal(grouped_int8_matmul(*args, tokens, bias), expected)
    half = grouped_int8_matmul(*args, tokens, bias, out_dtype=torch.float16)
    assert torch.equal(half, expected.half())


def test_both_configurations_are_tried():
    sizes = [sum(counts) > gpu.DECODE_ROWS * len(counts) for _, _, counts in CASES]
    assert True in sizes and False in sizes


@pytest.mark.parametrize("counts", [[5, 0, 20, 1], [90, 0, 150, 3]], ids=str)
def test_a_row_is_that_of_int8_matmul_alone_and_in_any_batch(counts, device):
    args = operands(sum(counts), 70, 144, counts, device)
    x, *weights, offsets = args
    whole = grouped_int8_matmul(*args)
    bounds = offsets.tolist()
    for expert in range(len(counts)):
        rows = slice(bounds[expert], bounds[expert + 1])
        alone = int8_matmul(x.of(rows), *(own[expert] for own in weights))
        assert torch.equal(whole[rows], alone)
    # Every third row by itself, without the others.
    for row in range(0, sum(counts), 3):
        expert = sum(bound <= row for bound in bounds[1:])
        one = torch.tensor([int(at > expert) for at in range(len(counts) + 1)], device=device).int()
        found = grouped_int8_matmul(x.of(slice(row, row + 1)), *weights, one)
        assert torch.equal(found, whole[row : row + 1])


@pytest.mark.parametrize("num_tokens", [1, 6, 60])
def test_serves_the_same_numbers_as_the_cpu(num_tokens, device):
    weight, bias = torch.randn(4, 33, 70), torch.randn(4, 33)
    x = torch.randn(num_tokens, 70) * 9
    choices = torch.rand(num_tokens, 4).topk(2).indices
    routing = Routing.of(choices, 4)
    expected = cpu.GroupedInt8Weight.quantize(weight).matmul(x, routing, bias)
    found = GroupedInt8Weight.quantize(weight.to(device)).matmul(
        x.to(device), Routing.of(choices.to(device), 4), bias.to(device)
    )
    assert torch.equal(found.cpu(), expected)


def test_the_grid_has_room_for_every_way_of_sharing_rows_out():
    def needed(counts: list[int], block: int) -> int:
        return sum(-(-count // block) for count in counts)

    for block in (16, 128):
        for counts in ([1] * 8, [0, 17, 129], [block + 1] * 5, [1, 0, 1], [block] * 3, [1000]):
            assert needed(counts, block) <= most_tiles(sum(counts), len(counts), block)
    assert most_tiles(8, 128, 16) == 8


def test_an_empty_batch(device):
    args = operands(3, 5, 16, [3, 0], device)
    none = torch.zeros(3, dtype=torch.int32, device=device)
    nobody = torch.empty(0, dtype=torch.int32, device=device)
    assert grouped_int8_matmul(args[0].of(slice(0)), *args[1:4], none).shape == (0, 5)
    assert grouped_int8_matmul(*args[:4], none, nobody).shape == (0, 5)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        ("values", torch.zeros(4, 8), "values is float32; it must be int8"),
        ("scale", torch.zeros(4), r"scale has shape \[4\]; it must be \[4, 1\]"),
        ("zero", torch.zeros(4, 1).int(), "zero is int32; it must be float32"),
        (1, torch.zeros(2, 5, 7, dtype=torch.int8), r"weight has shape \[2, 5, 7\]; .* \[any, any, 8\]"),
        (2, torch.zeros(2, 6), r"weight_scale has shape \[2, 6\]; it must be \[2, 5\]"),
        (3, torch.zeros(2, 6), r"weight_sum has shape \[2, 6\]; it must be \[2, 5\]"),
        (4, torch.zeros(2, dtype=torch.int32), r"offsets has shape \[2\]; it must be \[3\]"),
        (5, torch.zeros(4), "tokens is float32; it must be int32"),
        (6, torch.zeros(5), r"bias has shape \[5\]; it must be \[2, 5\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(position, value, message, device):
    args: list[Any] = [*operands(4, 5, 8, [1, 3], device), None, None]
    if isinstance(position, str):
        args[0] = replace(args[0], **{position: value.to(device)})
    else:
        args[position] = value.to(device)
    with pytest.raises(ValueError, match=message):
        grouped_int8_matmul(*args)


def test_sizes_beyond_exactness_are_refused(device):
    args = operands(1, 1, gpu.MAX_REDUCTION + 1, [1], device)
    with pytest.raises(ValueError, match=f"K is {gpu.MAX_REDUCTION + 1}; .* only up to {gpu.MAX_REDUCTION}"):
        grouped_int8_matmul(*args)
