"""What stays in floats beside quantized linears gives a row the same bits in any batch."""

import pytest
import torch
from torch import nn

from penstock.kernels.dispatch import choose_backend
from penstock.models.quantized_linear import quantize_linears
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


def test_routers_that_reach_into_a_linear_compute_so_and_stay_in_floats():
    class Reaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(512, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.classifier.weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.fc, self.embed = Reaching(), nn.Linear(16, 8), nn.Embedding(2, 4)

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

    torch.manual_seed(0)
    model = Model()
    x = torch.randn(40, 512)
    assert not torch.equal(model.router(x[:1]), model.router(x)[:1]), "or this test shows nothing"
    assert quantize_linears(model, choose_backend("cpu"), "w8a8") == {"w8a8": 1}
    make_steady(model)
    whole = model.router(x)
    torch.testing.assert_close(whole, x @ model.router.classifier.weight.T, atol=1e-4, rtol=1e-5)
    assert torch.equal(model.router(x[:1]), whole[:1]) and torch.equal(model.router(x[3:9]), whole[3:9])
