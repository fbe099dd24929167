"""The nearest codes by Hamming distance: in C where the chip has AVX-512 or AVX2, else in numpy, the same."""

import ctypes
import functools
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...native_build import chip_has, compiled
from .codes import WORDS, Words

log = logging.getLogger(__name__)

CHIPS = (("avx512f", "avx512vl", "avx512_vpopcntdq", "popcnt"), ("avx2", "popcnt"))
_PART = 1 << 16  # entries at a time in numpy: what lies between fits the L2 cache

Slots = NDArray[np.int32]


def scan(
    first: Words, rest: Words, alive: NDArray[np.uint8], query: Words, *, radius: int, keep: int
) -> tuple[NDArray[np.int32], Slots]:
    """The `keep` living entries nearest to a query among those whose first word is within `radius` of its first.

    Args:
        first, rest: the codes, [N] and [N, 3], contiguous.
        alive: [N], 0 where an entry was removed.
        query: a code, [4].

    Returns distances and slots, at most `keep`, sorted by distance, then slot.
    """
    found = library()
    if found is None:
        return scan_in_numpy(first, rest, alive, query, radius=radius, keep=keep)
    return _scan_in_c(found, first, rest, alive, query, radius=radius, keep=keep)


def scan_in_numpy(
    first: Words, rest: Words, alive: NDArray[np.uint8], query: Words, *, radius: int, keep: int
) -> tuple[NDArray[np.int32], Slots]:
    """What `scan` gives, whatever the chip."""
    parts = []
    for begin in range(0, len(first), _PART):
        near = np.bitwise_count(first[begin : begin + _PART] ^ query[0]) <= radius
        near &= alive[begin : begin + _PART] != 0
        parts.append(np.flatnonzero(near) + begin)
    slots = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    distances = np.bitwise_count(first[slots] ^ query[0]).astype(np.int32)
    distances += np.bitwise_count(rest[slots] ^ query[1:]).sum(axis=1, dtype=np.int32)
    best = np.argsort(distances, kind="stable")[:keep]
    return distances[best], slots[best].astype(np.int32)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled scan, for the best chip that this one is; None where it cannot be had or does not agree with numpy."""
    chips = filter(chip_has, CHIPS)
    return next((found for chip in chips if (found := library_for(chip)) is not None), None)


def library_for(chip: Sequence[str]) -> ctypes.CDLL | None:
    """The scan as compiled for these features of a chip; None where that fails, or it does not agree with numpy."""
    try:
        found = ctypes.CDLL(str(compiled(Path(__file__).parent, "penstock-scan", chip)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("the semantic index's scan is not compiled for %s: %s", chip, error)
        return None
    pointer, long = ctypes.c_void_p, ctypes.c_long
    found.penstock_scan.argtypes = (
        pointer,
        pointer,
        pointer,
        long,
        pointer,
        long,
        long,
        pointer,
        pointer,
    )
    found.penstock_scan.restype = long
    if not _agrees(found):
        log.warning("the compiled scan of the semantic index does not agree with numpy: it does not serve")
        return None
    return found


def _scan_in_c(
    found: ctypes.CDLL,
    first: Words,
    rest: Words,
    alive: NDArray[np.uint8],
    query: Words,
    *,
    radius: int,
    keep: int,
) -> tuple[NDArray[np.int32], Slots]:
    distances, slots = np.empty(keep, np.int32), np.empty(keep, np.int32)
    count = found.penstock_scan(
        first.ctypes.data,
        rest.ctypes.data,
        alive.ctypes.data,
        len(first),
        query.ctypes.data,
        radius,
        keep,
        distances.ctypes.data,
        slots.ctypes.data,
    )
    return distances[:count], slots[:count]


def _agrees(found: ctypes.CDLL) -> bool:
    """Tried once, at a size that leaves a rest in every loop."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 1 << 64, (4099, WORDS), np.uint64)
    first, rest = codes[:, 0].copy(), codes[:, 1:].copy()
    alive = random.integers(0, 2, len(codes)).astype(np.uint8)
    arguments = first, rest, alive, codes[7]
    return all(
        np.array_equal(a, b)
        for a, b in zip(
            _scan_in_c(found, *arguments, radius=30, keep=9),
            scan_in_numpy(*arguments, radius=30, keep=9),
            strict=True,
        )
    )
