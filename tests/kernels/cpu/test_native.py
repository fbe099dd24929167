"""The compiled product of a few rows is torch's, bit for bit; and where it cannot be compiled, nothing is missed."""

import subprocess
from pathlib import Path

import pytest
import torch

from penstock.kernels.cpu import int8_matmul as kernel
from penstock.kernels.cpu import native
from penstock.kernels.cpu.int8_matmul import Int8Weight, int8_matmul, quantize_activation, quantize_weight
from penstock.kernels.reference.int8_matmul import int8_matmul_reference

compiled = pytest.mark.skipif(native.int8_rows() is None, reason="no compiler, or no AVX-512 VNNI")
SIZES = [(1, 2), (5, 63), (8, 64), (9, 65), (129, 16), (300, 1000), (640, 129), (2000, 200)]


@compiled
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_equal_the_reference_exactly(
    shape: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(native, "ONE_THREAD", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rows = native.int8_rows()
    assert rows is not None
    torch.manual_seed(sum(shape))
    plain, scale = quantize_weight(torch.randn(shape))
    offsets = plain.sum(dim=1, dtype=torch.int32) * 128
    for bias in (None, torch.randn(shape[0])):
        for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 17):
            x = torch.randn(count, shape[1]) * torch.rand(count, 1) * 100
            expected = int8_matmul_reference(*quantize_activation(x), plain, scale, bias)
            assert torch.equal(rows(x, plain, offsets, scale, bias), expected)


@compiled
def test_extremes_are_exact():
    """The largest sums there can be, halves that round to even, rows of zeros."""
    k = 4096
    plain = torch.full((16, k), 127, dtype=torch.int8)
    plain[1::2] = -127
    weight = Int8Weight.of(plain, torch.ones(16))
    x = torch.stack(
        [
            torch.full((k,), 3.0),
            torch.full((k,), -1e30),
            torch.zeros(k),
            torch.arange(k) % 255 - 127.0,
            torch.ones(k) * 1e-20,
        ]
    )
    x[3] *= 0.5  # quantizes halves
    x[3, 0] = 127 * 0.5
    expected = int8_matmul_reference(*quantize_activation(x), plain, torch.ones(16), None)
    assert torch.equal(int8_matmul(x, weight), expected)


@compiled
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows(broken: float):
    weight = Int8Weight.quantize(torch.randn(24, 100))
    x = torch.randn(3, 100)
    clean = int8_matmul(x, weight)
    x[1, 57] = broken
    out = int8_matmul(x, weight)
    assert not torch.isfinite(out[1]).any()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])


@compiled
def test_few_rows_are_served_by_it_and_many_are_not(monkeypatch: pytest.MonkeyPatch):
    rows, served = native.int8_rows(), []
    assert rows is not None

    def counted(x, *rest):
        served.append(x.shape[0])
        return rows(x, *rest)

    weight = Int8Weight.quantize(torch.randn(24, 100))
    monkeypatch.setattr(kernel, "int8_rows", lambda: counted)
    for count in (1, kernel.NATIVE_ROWS, kernel.NATIVE_ROWS + 1):
        int8_matmul(torch.randn(count, 100), weight)
    assert served == [1, kernel.NATIVE_ROWS]


@compiled
def test_other_types_and_strides_are_taken():
    weight = Int8Weight.quantize(torch.randn(24, 100))
    x = torch.randn(100, 4).t()
    assert torch.equal(int8_matmul(x, weight), int8_matmul(x.contiguous(), weight))
    half = torch.randn(4, 100).bfloat16()
    assert torch.equal(int8_matmul(half, weight), int8_matmul(half.float(), weight))


@compiled
def test_a_large_weight_is_kept_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "SMALL_WEIGHT", 1 << 8)
    monkeypatch.setattr(kernel, "LARGE_WEIGHT", 1 << 10)
    plain, scale = quantize_weight(torch.randn(64, 80))
    weight = Int8Weight.of(plain, scale)
    weight.pack(keep_plain=True)
    assert weight.packed is None and weight.plain is not None
    x = torch.randn(40, 80)
    assert torch.equal(
        int8_matmul(x, weight), int8_matmul_reference(*quantize_activation(x), plain, scale, None)
    )


def test_without_it_torch_serves_the_same(monkeypatch: pytest.MonkeyPatch):
    plain, scale = quantize_weight(torch.randn(70, 130))
    x = torch.randn(3, 130)
    served = int8_matmul(x, Int8Weight.of(plain, scale))
    monkeypatch.setattr(kernel, "int8_rows", lambda: None)
    without = Int8Weight.of(plain, scale)
    assert without.offsets is None
    assert torch.equal(int8_matmul(x, without), served)


@pytest.fixture
def fresh():
    native.int8_rows.cache_clear()
    yield
    native.int8_rows.cache_clear()


def test_no_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(native, "_chip_has_vnni", lambda: True)

    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("cc")

    monkeypatch.setattr(subprocess, "run", missing)
    assert native.int8_rows() is None


@compiled
def test_it_is_compiled_once_for_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert native.int8_rows() is not None
    (made,) = (tmp_path / ".cache" / "penstock" / "native").iterdir()
    before = made.stat().st_mtime_ns
    native.int8_rows.cache_clear()
    assert native.int8_rows() is not None and made.stat().st_mtime_ns == before


def test_another_chip_is_left_alone(monkeypatch: pytest.MonkeyPatch, fresh: None):
    monkeypatch.setattr(native.platform, "machine", lambda: "aarch64")
    assert native.int8_rows() is None
