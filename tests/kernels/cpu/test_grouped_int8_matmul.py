"""Experts' W8A8 on a CPU equals its integer reference, and `int8_matmul` with the expert's weight, in any batch."""

import pytest
import torch

from penstock.kernels.cpu import int8_matmul as kernel
from penstock.kernels.cpu.grouped_int8_matmul import GroupedInt8Weight
from penstock.kernels.cpu.int8_matmul import int8_matmul, quantize_weight
from penstock.kernels.per_expert import PerExpertWeight
from penstock.kernels.quantized_rows import quantize_rows
from penstock.kernels.reference.grouped_int8_matmul import grouped_int8_matmul_reference
from penstock.kernels.routing import Routing, combine


@pytest.fixture(params=["native", "torch"], autouse=True)
def served_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our library where it can be had, and by torch's operators."""
    if request.param == "torch":
        monkeypatch.setattr(kernel, "library", lambda: None)
    elif kernel.library() is None:
        pytest.skip("no compiler, or no AVX2")


def choices_of(kind: str, num_tokens: int, num_experts: int, top_k: int) -> torch.Tensor:
    if kind == "one expert":
        return torch.full((num_tokens, 1), num_experts - 2)
    return torch.rand(num_tokens, num_experts).topk(top_k).indices


@pytest.mark.parametrize("kind", ["any", "one expert"])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 37])
@pytest.mark.parametrize("shape", [(9, 16), (33, 70), (1030, 1031)], ids=str)
def test_equals_the_reference(kind: str, num_tokens: int, shape: tuple[int, int]):
    torch.manual_seed(num_tokens)
    weight, bias = torch.randn(5, *shape), torch.randn(5, shape[0])
    grouped = GroupedInt8Weight.quantize(weight)
    plain, scale = (torch.stack(parts) for parts in zip(*map(quantize_weight, weight), strict=True))
    for own in grouped.experts:
        own.pack(keep_plain=False)  # the large one has another form from here on
    x = torch.randn(num_tokens, shape[1]) * 7
    routing = Routing.of(choices_of(kind, num_tokens, 5, 3), 5)
    expected = grouped_int8_matmul_reference(
        quantize_rows(x), plain, scale, routing.offsets, routing.tokens, bias
    )
    assert torch.equal(grouped.matmul(x, routing, bias), expected)
    rows = x[routing.tokens.long()]
    assert torch.equal(grouped.matmul(rows, routing.within(), bias), expected)


@pytest.mark.parametrize("shape", [(40, 96), (1030, 1031)], ids=str)
def test_a_row_is_that_of_int8_matmul_alone_and_in_any_batch(shape: tuple[int, int]):
    torch.manual_seed(0)
    grouped = GroupedInt8Weight.quantize(torch.randn(4, *shape))
    x, choices = torch.randn(50, shape[1]), choices_of("any", 50, 4, 2)
    routing = Routing.of(choices, 4)
    whole = grouped.matmul(x, routing)
    for token in range(50):
        alone = grouped.matmul(x[token : token + 1], one := Routing.of(choices[token : token + 1], 4))
        for choice in range(2):
            row = whole[routing.rows[token, choice]]
            assert torch.equal(row, alone[one.rows[0, choice]])
            own = grouped.experts[choices[token, choice]]
            assert torch.equal(row, int8_matmul(x[token : token + 1], own)[0])


def test_routing_knows_whose_rows_are_whose():
    routing = Routing.of(torch.tensor([[3, 1], [1, 0], [3, 0]]), 5)
    assert routing.offsets.tolist() == [0, 2, 4, 4, 6, 6]
    assert routing.tokens.tolist() == [1, 2, 0, 1, 0, 2]
    assert routing.rows.tolist() == [[4, 2], [3, 0], [5, 1]]
    shares = [(expert, share.start, share.stop) for expert, share in routing.shares()]
    assert shares == [(0, 0, 2), (1, 2, 4), (3, 4, 6)]


def test_results_are_added_up_in_the_order_of_choices():
    """Floats whose sum depends on the order: (1 + 2^-24) + 2^-24 is 1, 1 + (2^-24 + 2^-24) is not."""
    tiny = 2.0**-24
    values = torch.tensor([1.0, tiny, tiny])
    for choices in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        routing = Routing.of(torch.tensor([choices, [0, 1, 2]]), 3)
        rows = torch.empty(6, 1)
        rows[routing.rows.view(-1), 0] = values[torch.tensor([choices, [0, 1, 2]])].view(-1)
        total = combine(rows, routing, torch.ones(2, 3))[:, 0]
        expected = (values[choices[0]] + values[choices[1]]) + values[choices[2]]
        assert total[0] == expected and total[1] == 1.0


def test_experts_of_any_precision_one_after_the_other():
    class Float:
        def __init__(self, weight: torch.Tensor) -> None:
            self.weight, self.out_features = weight, weight.shape[0]

        def matmul(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.weight, bias)

    torch.manual_seed(0)
    weight, bias, x = torch.randn(3, 4, 8), torch.randn(3, 4), torch.randn(5, 8)
    routing = Routing.of(choices := choices_of("any", 5, 3, 2), 3)
    found = PerExpertWeight([Float(own) for own in weight]).matmul(x, routing, bias)
    for token in range(5):
        for choice, expert in enumerate(choices[token]):
            expected = weight[expert] @ x[token] + bias[expert]
            torch.testing.assert_close(found[routing.rows[token, choice]], expected)
    nobody = Routing.of(torch.empty(0, 2, dtype=torch.long), 3)
    assert PerExpertWeight([Float(own) for own in weight]).matmul(x[:0], nobody).shape == (0, 4)
