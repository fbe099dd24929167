"""Verified near hits on disk: per family of questions a ring of rows, which all processes append to. Rows are bytes here.

In the database `labels`: family -> how many rows it ever had, and when it was last written; family | slot -> row.
"""

import struct
from collections.abc import Iterable

from ..environment import CacheEnvironment, ReadTransaction, Transaction

FAMILY_BYTES = 24
# Rows of a family, at most: 3 MB. (For bounds below 0.15 % a policy would look at more.)
RING = 1 << 15
_LEAST_RING = 1024
# Of a row with its key, about; of the cap, what all families together may take.
_ROW_BYTES, _SHARE = 128, 8
# Rows that one transaction reads.
CHUNK = 1024

_FAMILY = struct.Struct("<Qd")


class LabelLog:
    """`max_bytes`: the cache's cap. Families written to the longest ago go when labels take an eighth of it."""

    def __init__(self, environment: CacheEnvironment, *, max_bytes: int) -> None:
        self._rows = environment.open_database(b"labels")
        self._page_size = environment.page_size
        self._most_bytes = max_bytes // _SHARE
        self._ring = min(RING, max(_LEAST_RING, self._most_bytes // _ROW_BYTES))

    def append(self, txn: Transaction, family: bytes, rows: Iterable[bytes], now: float) -> None:
        count, _ = self._family(txn, family)
        for row in rows:
            txn.put(self._name(family, count), row, db=self._rows)
            count += 1
        txn.put(family, _FAMILY.pack(count, now), db=self._rows)
        while self._num_bytes(txn) > self._most_bytes:
            others = [name for name in self.families(txn) if name != family]
            if not others:
                break
            self.forget(txn, min(others, key=lambda name: self._family(txn, name)[1]))

    def read(
        self, txn: "Transaction | ReadTransaction", family: bytes, since: int = 0
    ) -> tuple[bytes, int, int]:
        """Up to CHUNK rows from number `since` on, the number after the last of them, and how many there ever were."""
        count, _ = self._family(txn, family)
        first = max(since, count - self._ring)
        numbers = range(first, min(first + CHUNK, count))
        rows = (txn.get(self._name(family, number), db=self._rows) for number in numbers)
        return b"".join(row for row in rows if row is not None), max(since, numbers.stop), count

    def families(self, txn: "Transaction | ReadTransaction") -> list[bytes]:
        found = []
        with txn.cursor(self._rows) as cursor:
            more = cursor.first()
            while more:
                family = bytes(cursor.key())[:FAMILY_BYTES]
                found.append(family)
                more = cursor.set_range(family + b"\xff" * 5)  # behind all its rows
        return found

    def forget(self, txn: Transaction, prefix: bytes) -> int:
        """Removes the families whose name begins with `prefix`; returns how many rows that were."""
        removed = 0
        with txn.cursor(self._rows) as cursor:
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                removed += len(cursor.key()) > FAMILY_BYTES
                found = cursor.delete()
        return removed

    def _family(self, txn: "Transaction | ReadTransaction", family: bytes) -> tuple[int, float]:
        """How many rows it ever had, and when it was last written."""
        data = txn.get(family, db=self._rows)
        if data is None:
            return 0, 0.0
        count, written = _FAMILY.unpack(data)
        return count, written

    def _num_bytes(self, txn: Transaction) -> int:
        stat = txn.stat(self._rows)
        return (stat["branch_pages"] + stat["leaf_pages"]) * self._page_size

    def _name(self, family: bytes, number: int) -> bytes:
        return family + (number % self._ring).to_bytes(4, "big")
