"""Codes and their scan: C against numpy against the definition, rotations, and INT8."""

import subprocess

import numpy as np
import pytest

from penstock import native_build
from penstock.cache.semantic import scan as scanning
from penstock.cache.semantic.codes import (
    BITS,
    Rotation,
    quantize,
    random_rotation,
    restored,
    trained_rotation,
)
from penstock.cache.semantic.scan import library, scan, scan_in_numpy

compiled = pytest.mark.skipif(library() is None, reason="no compiler, or no AVX2")
SIZES = [1, 7, 8, 9, 63, 4095, 4096, 4097, 70_003]


def case(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes of which many are near the query and many at equal distances; a quarter are dead."""
    random = np.random.default_rng(count)
    query = random.integers(0, 1 << 64, 4, np.uint64)
    noise = random.integers(0, 1 << 64, (count, 4), np.uint64)
    for _ in range(2):
        noise[::2] &= random.integers(0, 1 << 64, (len(noise[::2]), 4), np.uint64)
    codes = query ^ noise
    codes[3::5] = codes[0]
    alive = (random.random(count) < 0.75).astype(np.uint8)
    return codes[:, 0].copy(), codes[:, 1:].copy(), alive, query


def by_definition(first, rest, alive, query, radius, keep):
    found = []
    for slot in range(len(first)):
        words = [int(first[slot]), *map(int, rest[slot])]
        apart = [(a ^ int(b)).bit_count() for a, b in zip(words, query, strict=True)]
        if alive[slot] and apart[0] <= radius:
            found.append((sum(apart), slot))
    return sorted(found)[:keep]


@pytest.mark.parametrize("radius", [0, 10, 20, 64])
@pytest.mark.parametrize("count", SIZES[:-1])
def test_numpy_finds_what_the_definition_says(count: int, radius: int):
    arguments = case(count)
    distances, slots = scan_in_numpy(*arguments, radius=radius, keep=13)
    assert list(zip(distances.tolist(), slots.tolist(), strict=True)) == by_definition(*arguments, radius, 13)


@compiled
@pytest.mark.parametrize("chip", [chip for chip in scanning.CHIPS if native_build.chip_has(chip)], ids=str)
@pytest.mark.parametrize("keep", [1, 13, 32])
@pytest.mark.parametrize("radius", [0, 10, 20, 64])
@pytest.mark.parametrize("count", SIZES)
def test_c_equals_numpy(count: int, radius: int, keep: int, chip: tuple[str, ...], monkeypatch):
    monkeypatch.setattr(scanning, "library", lambda: scanning.library_for(chip))
    arguments = case(count)
    expected = scan_in_numpy(*arguments, radius=radius, keep=keep)
    found = scan(*arguments, radius=radius, keep=keep)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def test_an_empty_partition_has_nothing():
    first, rest, alive, query = case(8)
    for function in (scan, scan_in_numpy):
        distances, slots = function(first[:0], rest[:0], alive[:0], query, radius=64, keep=5)
        assert len(distances) == len(slots) == 0


@pytest.fixture
def fresh():
    library.cache_clear()
    yield
    library.cache_clear()


def test_no_compiler_is_no_error(monkeypatch, tmp_path, fresh):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    monkeypatch.setattr(scanning, "chip_has", lambda flags: True)

    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("cc")

    monkeypatch.setattr(subprocess, "run", missing)
    assert library() is None
    arguments = case(100)
    found, expected = scan(*arguments, radius=64, keep=5), scan_in_numpy(*arguments, radius=64, keep=5)
    assert np.array_equal(found, expected)


@compiled
def test_a_library_that_disagrees_is_not_used(monkeypatch, fresh):
    monkeypatch.setattr(scanning, "scan_in_numpy", lambda *args, **kwargs: (np.zeros(1), np.zeros(1)))
    assert library() is None


def test_another_chip_is_left_alone(monkeypatch, fresh):
    monkeypatch.setattr(native_build.platform, "machine", lambda: "aarch64")
    assert library() is None


def clustered(count: int, dims: int = 384) -> np.ndarray:
    """As sentence embeddings are: a mean that is not zero, a spectrum that falls off, clusters."""
    random = np.random.default_rng(count)
    spectrum = (1 + np.arange(dims)) ** -0.4
    centres = random.standard_normal((count // 10, dims)) * spectrum
    x = (
        centres[random.integers(0, len(centres), count)]
        + 0.6 * random.standard_normal((count, dims)) * spectrum
    )
    x += 0.3 * np.linalg.norm(x, axis=1).mean() * np.ones(dims) / np.sqrt(dims)
    basis = np.linalg.qr(random.standard_normal((dims, dims)))[0]  # no coordinate is larger than the others
    return (x / np.linalg.norm(x, axis=1, keepdims=True) @ basis).astype(np.float32)


def test_a_bit_says_on_which_side_of_a_plane_the_embedding_lies():
    x = clustered(40)
    rotation = trained_rotation(clustered(2000))
    codes = rotation.encode(x)
    bits = np.unpackbits(codes.view(np.uint8), axis=1, bitorder="little")
    assert codes.shape == (40, 4) and codes.dtype == np.uint64
    assert np.array_equal(bits, x @ rotation.planes > rotation.thresholds)
    assert np.array_equal(rotation.encode(x[3:4])[0], codes[3])


@pytest.mark.parametrize("make", [lambda: random_rotation(384), lambda: trained_rotation(clustered(2000))])
def test_planes_are_orthonormal_and_survive_packing(make):
    rotation = make()
    assert np.allclose(rotation.planes.T @ rotation.planes, np.eye(BITS), atol=1e-4)
    again = Rotation.unpack(rotation.pack())
    assert np.array_equal(again.planes, rotation.planes)
    assert np.array_equal(again.thresholds, rotation.thresholds)


def test_training_twice_gives_the_same():
    x = clustered(2000)
    first, second = trained_rotation(x), trained_rotation(x)
    assert np.array_equal(first.planes, second.planes)
    assert np.array_equal(first.thresholds, second.thresholds)


def test_trained_codes_keep_near_pairs_nearer_and_let_fewer_others_pass():
    x = clustered(5000)
    noise = np.random.default_rng(1).standard_normal(x.shape) / np.sqrt(x.shape[1])
    near = x + 0.6 * noise.astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)

    def measured(rotation: Rotation) -> tuple[float, float]:
        """Mean distance of near pairs, and the share of all others within 22 bits in the first word."""
        codes, others = rotation.encode(near[4096:]), rotation.encode(x)
        apart = np.bitwise_count(codes ^ others[4096:]).sum(axis=1).mean()
        return float(apart), float((np.bitwise_count(codes[:, None, 0] ^ others[None, :, 0]) <= 22).mean())

    trained, random = measured(trained_rotation(x[:4096])), measured(random_rotation(x.shape[1]))
    assert trained[0] < random[0]
    assert trained[1] < 0.7 * random[1]


def test_int8_keeps_cosines():
    x = clustered(300)
    rows = restored(*quantize(x * 17))
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.abs(rows @ x.T - x @ x.T).max() < 2e-3
