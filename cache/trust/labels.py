"""The log of verified near hits, which is all the state there is: rows of fixed size that are only ever added.

Everything the policy knows is computed from these rows, so two workers that write at once lose nothing: the union of
their rows is the state. Knows no model and no bound.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from .features import MOST_DIFFERING, NAMES

# Beside the features' numbers: what the labels then known said about the entry (two) and the differing words (two).
WIDTH = len(NAMES) + 4

# Flags of a row.
SAME = 1
"""The model gave the stored answer."""
TRUSTED = 2
"""At or above the threshold: explored, or labelled because the request wanted the model's own answer."""
CLOSE = 4
"""Scored near enough to the threshold to speak about it; kept longer than the many that are far."""
CONTRADICTED = 8
"""Its entry had been wrong at this or a higher cosine: never served, so no evidence about what is."""

# `standing_for`: how many near hits like it the row speaks for; above one where only some were verified (explored).
ROW = np.dtype(
    [
        ("at", "<f8"),
        ("entry", "<u8"),
        ("flags", "u1"),
        ("version", "u1"),
        ("standing_for", "<u2"),
        ("values", "<f4", (WIDTH,)),
        ("differing", "<u2", (MOST_DIFFERING,)),
    ]
)
Rows = NDArray[np.void]

# Rows of another one are no evidence: raise it whenever a feature or a flag changes its meaning. Rows of two sizes could not
# be told apart: if the size has to change, they need another database.
VERSION = 1
NO_ROWS: Rows = np.empty(0, ROW)
_PACKED = struct.Struct(f"<dQBBH{WIDTH}f{MOST_DIFFERING}H")
assert _PACKED.size == ROW.itemsize


def row(
    at: float,
    entry: int,
    flags: int,
    standing_for: int,
    values: tuple[float, ...],
    differing: tuple[int, ...],
) -> bytes:
    """One row: what numpy would make of the same values, for a hundredth of its time."""
    missing = (0,) * (MOST_DIFFERING - len(differing))
    return _PACKED.pack(at, entry, flags, VERSION, standing_for, *values, *differing, *missing)


def read(data: bytes) -> Rows:
    """Rows of this version from their bytes; none where these are no whole number of rows."""
    if len(data) % ROW.itemsize:
        return NO_ROWS
    rows = np.frombuffer(data, ROW)
    ours: Rows = rows[rows["version"] == VERSION]
    return ours


def without(rows: Rows, known: Rows) -> Rows:
    """Those of `rows` that are not among `known`."""
    names = f"V{ROW.itemsize}"
    # A set of bytes: 1 ms for 4,000 rows, where sorting them takes 18.
    seen = set(known.view(names).tolist())
    new: Rows = rows[[row not in seen for row in rows.view(names).tolist()]]
    return new


def merge(a: Rows, b: Rows, capacity: int) -> Rows:
    """The union in the order of time, without repeats, cut to the newest `capacity` (a quarter of it far rows)."""
    rows = np.concatenate((a, b))
    _, first = np.unique(rows.view(f"V{ROW.itemsize}"), return_index=True)
    rows = rows[first]
    rows = rows[np.argsort(rows["at"], kind="stable")]
    close = rows["flags"] & CLOSE != 0
    # Counted from the newest backwards, each kind by itself.
    age = np.where(close, np.cumsum(close[::-1])[::-1], np.cumsum(~close[::-1])[::-1])
    kept: Rows = rows[age <= np.where(close, capacity - capacity // 4, capacity // 4)]
    return kept
