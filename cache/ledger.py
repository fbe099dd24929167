"""What a write transaction does to entries, so that the four databases always agree. Knows no threads.

Least recently used, cheaply: an entry has exactly one line in the order index, under the stamp `queued`. A
use only rewrites the small record (`accessed`). When eviction reaches a line whose entry was used since, it
moves the line to that later stamp and goes on, so what is evicted is the least recently used entry of all
processes' noted uses.

Entries that are found by meaning, too, must leave the semantic index with their completion: that is noted in
`index_changes`, for whoever changes the index in the same transaction.
"""

import math
from typing import TYPE_CHECKING

import lmdb

from .environment import CacheEnvironment, Transaction
from .record import (
    Record,
    body_key,
    decode_question,
    index_line,
    pack_record,
    split_line,
    stamp,
    unpack_record,
)

if TYPE_CHECKING:
    from .semantic.codes import Floats


class Ledger:
    def __init__(self, environment: CacheEnvironment, *, max_bytes: int) -> None:
        self._env = environment
        self._max_bytes = max_bytes
        self.index_changes: dict[bytes, dict[bytes, Floats | None]] = {}  # partition -> place; None: removed

    def record(self, txn: Transaction, place: bytes) -> Record | None:
        data = txn.get(place, db=self._env.records)
        return None if data is None else unpack_record(data)

    def put(self, txn: Transaction, place: bytes, record: Record, body: bytes) -> None:
        """Adds an entry, in place of any older one."""
        self.remove(txn, place)
        txn.put(place, pack_record(record), db=self._env.records)
        self._append(txn, body_key(record, place), body, self._env.bodies)
        self._append(txn, index_line(record.queued, place), b"", self._env.order)
        if record.expires != math.inf:
            txn.put(index_line(stamp(record.expires), place), b"", db=self._env.expiry)

    def touch(self, txn: Transaction, place: bytes, moment: int) -> None:
        """Notes a use, unless the entry is gone or another process noted a later one."""
        record = self.record(txn, place)
        if record is not None and record.accessed < moment:
            self._put_record(txn, place, record, accessed=moment, queued=record.queued)

    def remove(self, txn: Transaction, place: bytes) -> None:
        """Takes an entry away, its lines included; nothing happens if there is none."""
        record = self.record(txn, place)
        if record is None:
            return
        txn.delete(place, db=self._env.records)
        body = txn.pop(body_key(record, place), db=self._env.bodies)
        question = None if body is None else decode_question(body)
        if question is not None:
            self.index_changes.setdefault(question.partition, {})[place] = None
        txn.delete(index_line(record.queued, place), db=self._env.order)
        if record.expires != math.inf:
            txn.delete(index_line(stamp(record.expires), place), db=self._env.expiry)

    def expire(self, txn: Transaction, now: float, limit: int) -> int:
        """Removes up to `limit` entries whose time is over; returns how many."""
        removed = 0
        while removed < limit:
            line = self._first(txn, self._env.expiry)
            if line is None or split_line(line)[0] > stamp(now):
                break
            self.remove(txn, split_line(line)[1])
            txn.delete(line, db=self._env.expiry)
            removed += 1
        return removed

    def evict(self, txn: Transaction, limit: int) -> tuple[int, bool]:
        """Removes the least recently used entries until the cap is kept.

        Takes at most `limit` steps, so that no transaction grows without bound; a step removes or requeues
        one entry. Returns how many entries it removed, and whether it stopped at the limit.
        """
        evicted = 0
        for _ in range(limit):
            line = None
            if self._env.used_bytes(txn) > self._max_bytes:
                line = self._first(txn, self._env.order)
            if line is None:
                return evicted, False
            queued, place = split_line(line)
            record = self.record(txn, place)
            txn.delete(line, db=self._env.order)
            if record is None or record.queued != queued:
                continue  # a line that has lost its entry
            if record.accessed > queued:
                txn.put(index_line(record.accessed, place), b"", db=self._env.order)
                self._put_record(txn, place, record, accessed=record.accessed, queued=record.accessed)
            else:
                self.remove(txn, place)
                evicted += 1
        return evicted, True

    def _first(self, txn: Transaction, database: lmdb._Database) -> bytes | None:
        with txn.cursor(database) as cursor:
            return cursor.key() if cursor.first() else None

    def _put_record(
        self, txn: Transaction, place: bytes, record: Record, *, accessed: int, queued: int
    ) -> None:
        changed = Record(record.created, record.expires, accessed, queued, record.checksum, record.digest)
        txn.put(place, pack_record(changed), db=self._env.records)

    def _append(self, txn: Transaction, line: bytes, value: bytes, database: lmdb._Database) -> None:
        # Appending fills pages whole where inserting would split them in halves; False when another process's
        # later entry is there already.
        if not txn.put(line, value, append=True, db=database):
            txn.put(line, value, db=database)
