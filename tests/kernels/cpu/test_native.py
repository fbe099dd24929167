"""The C library: built once, missed by nobody where it cannot be, and exact at sizes and on threads of every kind."""

import subprocess
import threading
from pathlib import Path

import pytest
import torch

from penstock.kernels.cpu.int8_matmul import quantize_weight
from penstock.kernels.cpu.native import library as native
from penstock.kernels.cpu.native.library import PackedWeight, argmax, library
from penstock.kernels.quantized_rows import quantize_rows
from penstock.kernels.reference.int8_matmul import int8_matmul_reference
from penstock.native_build import KERNEL_CHIPS, chip_has

compiled = pytest.mark.skipif(library() is None, reason="no compiler, or no AVX2")
SIZES = [(1, 2), (5, 63), (8, 64), (64, 65), (65, 16), (129, 4), (300, 1000), (640, 129), (2000, 200)]


def packed(plain: torch.Tensor, scale: torch.Tensor) -> PackedWeight:
    found = library()
    assert found is not None
    return PackedWeight(found, plain, scale)


@compiled
@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_products_equal_the_reference_exactly(
    shape: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(sum(shape))
    plain, scale = quantize_weight(torch.randn(shape))
    weight = packed(plain, scale)
    for bias in (None, torch.randn(shape[0])):
        for count in (1, 2, 3, 4, 5, 6, 7, 8, 13, 17, 95, 96, 97, 200):
            x = torch.randn(count, shape[1]) * torch.rand(count, 1) * 100
            expected = int8_matmul_reference(quantize_rows(x), plain, scale, bias)
            assert torch.equal(weight.matmul(x, bias), expected), (count, bias is None)


@compiled
@pytest.mark.usefixtures("chip")
def test_extremes_are_exact():
    """The largest sums there can be, halves that round to even, rows of zeros, and one whose largest would be 128."""
    k = 4096
    plain = torch.full((16, k), 127, dtype=torch.int8)
    plain[1::2] = -127
    x = torch.stack(
        [
            torch.full((k,), 3.0),
            torch.full((k,), -1e30),
            torch.zeros(k),
            torch.arange(k) % 509 * 0.5 - 127.5,
            torch.ones(k) * 1e-20,
            (torch.arange(k) % 2 * 2 - 1) * 1e38,
            torch.arange(k) % 2 * 255.0 - 128.5,
        ]
    )
    x[3, :2] = torch.tensor([-128.0, 127.0])  # a scale of 1: quantizes halves
    expected = int8_matmul_reference(quantize_rows(x), plain, torch.ones(16), None)
    assert torch.equal(packed(plain, torch.ones(16)).matmul(x, None), expected)


@compiled
@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_weights_are_quantized_as_by_torch(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(sum(shape))
    weight = (torch.randn(shape) * torch.rand(shape[0], 1) * 10).to(dtype)
    weight[0] = 0
    weight[-1] = (torch.arange(shape[1]) % 255 - 127) * 0.5  # halves, where the scale is 0.5
    weight[-1, 0] = 63.5
    quantized, scale = quantize_weight(weight)
    with monkeypatch.context() as patch:
        patch.setattr(native, "quantize_weight", lambda weight: None)
        by_torch = quantize_weight(weight)
    assert torch.equal(quantized, by_torch[0]) and torch.equal(scale, by_torch[1])
    weight[0, -1] = float("nan")
    assert torch.isnan(quantize_weight(weight)[1][0])


@compiled
@pytest.mark.usefixtures("chip")
def test_other_types_and_strides_are_taken():
    weight = packed(*quantize_weight(torch.randn(24, 100)))
    x = torch.randn(100, 4).t()
    assert torch.equal(weight.matmul(x, None), weight.matmul(x.contiguous(), None))
    half = torch.randn(4, 100).bfloat16()
    assert torch.equal(weight.matmul(half, None), weight.matmul(half.float(), None))


@compiled
def test_several_engines_multiply_at_once(monkeypatch: pytest.MonkeyPatch):
    """Callers share the helpers by turns: one has them, the others work alone."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.manual_seed(0)
    plain, scale = quantize_weight(torch.randn(700, 300))
    weight, x = packed(plain, scale), torch.randn(40, 300)
    expected = int8_matmul_reference(quantize_rows(x), plain, scale, None)
    wrong: list[int] = []

    def multiply(number: int) -> None:
        wrong.extend(number for _ in range(300) if not torch.equal(weight.matmul(x, None), expected))

    threads = [threading.Thread(target=multiply, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


@compiled
@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize("width", [1, 15, 16, 17, 4096, 151_937])
def test_the_largest_is_found_where_it_first_stands(width: int):
    torch.manual_seed(width)
    x = torch.randn(5, width)
    x[1] = x[1].abs().neg()
    x[2] = 1.5
    x[3] = float("-inf")
    x[4, -1] = float("inf")
    best, where = argmax(x)
    assert torch.equal(best, x.amax(dim=-1))
    assert where.tolist() == [int((row == row.max()).nonzero()[0]) for row in x]
    x[0, width // 2] = float("nan")
    assert torch.isnan(argmax(x)[0]).tolist() == [True, False, False, False, False]


@pytest.fixture
def fresh():
    library.cache_clear()
    yield
    library.cache_clear()


def test_no_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(native, "chip_has", lambda flags: True)

    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("cc")

    monkeypatch.setattr(subprocess, "run", missing)
    assert library() is None


@compiled
def test_it_is_compiled_once_for_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert library() is not None
    (made,) = (tmp_path / ".cache" / "penstock" / "native").iterdir()
    before = made.stat().st_mtime_ns
    library.cache_clear()
    assert library() is not None and made.stat().st_mtime_ns == before


@compiled
def test_the_next_chip_serves_where_the_first_does_not_compile(monkeypatch: pytest.MonkeyPatch, fresh: None):
    own = next(filter(chip_has, KERNEL_CHIPS.values()))
    monkeypatch.setattr(native, "KERNEL_CHIPS", {"another": ("unheard_of",), "own": own})
    monkeypatch.setattr(native, "chip_has", lambda flags: True)
    assert library() is not None


def test_another_chip_is_left_alone(monkeypatch: pytest.MonkeyPatch, fresh: None):
    monkeypatch.setattr("penstock.native_build.platform.machine", lambda: "aarch64")
    assert library() is None
