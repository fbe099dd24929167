"""What stays in floats beside quantized linears gives a row the same bits in any batch."""

import pytest
import torch
from torch import nn

from penstock.models.steady_linear import make_steady, steady_linear

BATCHES = [(0, 1), (1, 2), (7, 9), (3, 8), (5, 21), (0, 33), (30, 47), (100, 300), (299, 300)]


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("columns", [1, 8, 60, 128])
@pytest.mark.parametrize("width", [31, 64, 2048])
def test_a_row_is_the_same_in_any_batch(width, columns, threads):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(300, width), torch.randn(columns, width), torch.randn(columns)
    whole = steady_linear(x, weight, bias)
    for first, last in BATCHES:
        assert torch.equal(steady_linear(x[first:last], weight, bias), whole[first:last])
    torch.testing.assert_close(whole, nn.functional.linear(x, weight, bias), atol=2e-4, rtol=1e-5)


def test_leading_dimensions_and_empty_batches():
    weight = torch.randn(3, 8)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(steady_linear(x, weight), x @ weight.T)
    assert steady_linear(x[:0], weight).shape == (0, 5, 3)


def test_modules_compute_their_products_so():
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 512))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight)

    torch.manual_seed(0)
    model = nn.Sequential(Router(), nn.LayerNorm(8), nn.Embedding(4, 4))
    x = torch.randn(40, 512)
    plain = model[0](x)
    assert not torch.equal(model[0](x[:1]), plain[:1]), "or this test shows nothing"
    assert make_steady(model) == 1
    whole = model[0](x)
    torch.testing.assert_close(whole, plain, atol=1e-4, rtol=1e-5)
    assert torch.equal(model[0](x[:1]), whole[:1]) and torch.equal(model[0](x[3:9]), whole[3:9])
