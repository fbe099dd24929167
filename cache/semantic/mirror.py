"""The codes of the partitions in use, in this process's memory, brought up to date before each search. Knows no queries."""

import threading
from collections import OrderedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..environment import CacheEnvironment
from .codes import WORDS, Rotation, Words
from .layout import SEGMENT, Head
from .store import AnyTransaction, SemanticStore

BYTES_PER_ENTRY = 8 * WORDS + 1


class View(msgspec.Struct, frozen=True):
    """What one search scans. Later entries go behind `first`'s end and later removals only clear `alive`, so it stays
    usable while another thread brings the mirror up to date."""

    head: Head
    rotation: Rotation
    first: Words  # [count]
    rest: Words  # [count, 3]
    alive: NDArray[np.uint8]  # [count]


class _Mirror:
    def __init__(self, rotation: Rotation, head: Head) -> None:
        self.head = Head(head.number, changes=-1, generation=head.generation)
        self.rotation = rotation
        self.first, self.rest, self.alive = _planes(head.count)

    def can_follow(self, head: Head) -> bool:
        """False after compaction and after training: slots or codes are others then."""
        return self.head.number == head.number and self.head.generation == head.generation

    def update(self, txn: AnyTransaction, store: SemanticStore, head: Head) -> None:
        if head.changes == self.head.changes:
            return
        if head.count > len(self.first):
            self._make_room(max(head.count, len(self.first) * 3 // 2))
        for slot, first, others in store.codes_since(txn, head, self.head.count):
            self.first[slot : slot + len(first)] = first
            self.rest[slot : slot + len(first)] = others
        if head.dead != self.head.dead:
            for slot, removed in store.removed(txn, head):
                self.alive[slot : slot + SEGMENT] &= 1 - removed
        self.head = head

    def view(self) -> View:
        count = self.head.count
        return View(self.head, self.rotation, self.first[:count], self.rest[:count], self.alive[:count])

    def num_bytes(self) -> int:
        return len(self.first) * BYTES_PER_ENTRY

    def _make_room(self, wanted: int) -> None:
        """New arrays, since a search may still read the old ones."""
        first, rest, alive = _planes(wanted)
        count = self.head.count
        first[:count], rest[:count] = self.first[:count], self.rest[:count]
        alive[: len(self.alive)] = self.alive
        self.first, self.rest, self.alive = first, rest, alive


def _planes(count: int) -> tuple[Words, Words, NDArray[np.uint8]]:
    """Room for `count` entries, in whole segments, as removals are read by them."""
    size = -(-count // SEGMENT) * SEGMENT
    return np.empty(size, "<u8"), np.empty((size, WORDS - 1), "<u8"), np.ones(size, np.uint8)


class Mirrors:
    """The mirrors last used, up to a number of bytes. Any thread."""

    def __init__(self, environment: CacheEnvironment, store: SemanticStore, max_bytes: int) -> None:
        self._env, self._store, self._max_bytes = environment, store, max_bytes
        self._lock = threading.Lock()
        self._mirrors: OrderedDict[bytes, _Mirror] = OrderedDict()
        self.num_bytes = 0

    def holds(self, partition: bytes, most: int) -> bool:
        """Whether a view of at most `most` entries can be had at once: nobody fills a mirror just now."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            mirror = self._mirrors.get(partition)
            return mirror is not None and mirror.head.count <= most
        finally:
            self._lock.release()

    def view(self, partition: bytes) -> View | None:
        """All that is committed to a partition now, by whatever process; None when it has no entries.

        The partition asked for stays even when it alone is over the bound.
        """
        with self._lock, self._env.reading() as txn:
            mirror = self._mirrors.pop(partition, None)
            if mirror is not None:
                self.num_bytes -= mirror.num_bytes()
            head = self._store.head(txn, partition)
            if head is None:
                return None
            if mirror is None or not mirror.can_follow(head):
                mirror = _Mirror(self._store.rotation(txn, head), head)
            mirror.update(txn, self._store, head)
            self._mirrors[partition] = mirror  # at the end: used last
            self.num_bytes += mirror.num_bytes()
            while self.num_bytes > self._max_bytes and len(self._mirrors) > 1:
                self.num_bytes -= self._mirrors.popitem(last=False)[1].num_bytes()
            return mirror.view()
