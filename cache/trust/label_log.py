"""Verified near hits on disk: per family of questions a ring of rows, which all processes append to. Rows are bytes here.

In the database `labels`: family -> how many rows it ever had; family | slot -> row.
"""

from collections.abc import Iterable

from ..environment import CacheEnvironment, ReadTransaction, Transaction

FAMILY_BYTES = 24
# More than any policy looks at, and at most 3 MB a family.
RING = 1 << 15


class LabelLog:
    def __init__(self, environment: CacheEnvironment) -> None:
        self._rows = environment.open_database(b"labels")

    def append(self, txn: Transaction, family: bytes, rows: Iterable[bytes]) -> None:
        count = self._count(txn, family)
        for row in rows:
            txn.put(_name(family, count), row, db=self._rows)
            count += 1
        txn.put(family, count.to_bytes(8, "little"), db=self._rows)

    def read(self, txn: ReadTransaction, family: bytes, since: int = 0) -> tuple[bytes, int]:
        """The rows from number `since` on, as far as they are kept, and how many there ever were."""
        count = self._count(txn, family)
        numbers = range(max(since, count - RING), count)
        rows = (txn.get(_name(family, number), db=self._rows) for number in numbers)
        return b"".join(row for row in rows if row is not None), count

    def families(self, txn: ReadTransaction) -> list[bytes]:
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

    def _count(self, txn: "Transaction | ReadTransaction", family: bytes) -> int:
        return int.from_bytes(txn.get(family, db=self._rows) or b"", "little")


def _name(family: bytes, number: int) -> bytes:
    return family + (number % RING).to_bytes(4, "big")
