"""What transactions do to the index, so that its rows always agree. Knows no threads and no search.

Adding appends slots and fills segments; removing marks slots, and a partition with a third of its slots dead is copied
without them under a new number. Once a partition has `TRAIN_AT` entries, ITQ is trained on the first of them (slow, so
outside the write lock), and one transaction rewrites all codes.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import lmdb
import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError
from ..environment import INDEX_DATABASE, CacheEnvironment, ReadTransaction, Transaction
from . import layout
from .codes import Floats, Rotation, Words, quantize, random_rotation, restored, trained_rotation
from .layout import CODES, REMOVED, ROTATION, SEGMENT, TAIL, VECTORS, Head

TRAIN_AT = 4 * SEGMENT
COMPACT_AT = 64  # dead slots, at least
_COPIED = 16 * SEGMENT  # entries that compaction moves at a time

_FORMAT = struct.Struct("<II")

AnyTransaction: TypeAlias = "Transaction | ReadTransaction"


def has_entries(environment: CacheEnvironment) -> bool:
    """Whether anything was ever indexed here."""
    rows = environment.open_database(INDEX_DATABASE)
    with environment.reading() as txn:
        return txn.get(layout.FORMAT_ROW, db=rows) is not None


class SemanticStore:
    """The index's databases in an environment.

    Raises ConfigError when they hold embeddings of another size, or another format.
    """

    def __init__(self, environment: CacheEnvironment, dims: int | None) -> None:
        self._env = environment
        self.rows = environment.open_database(INDEX_DATABASE)
        self.keys = environment.open_database(b"semantic_keys")
        self.slots = environment.open_database(b"semantic_slots")
        with environment.write() as txn:
            self._check_format(txn, dims)
        self._tail = layout.tail_type(self.dims)

    def check_dims(self, dims: int) -> None:
        """Raises ConfigError unless embeddings of `dims` numbers are the ones kept here."""
        if dims != self.dims:
            raise ConfigError(
                f"The semantic index at {self._env.path} holds embeddings of {self.dims} numbers, and the embedder makes "
                f"{dims}. Use the embedder it was made with, or choose another path.",
                param="cache.path",
            )

    def head(self, txn: AnyTransaction, partition: bytes) -> Head | None:
        data = txn.get(layout.head_row(partition), db=self.rows)
        return None if data is None else Head.unpack(data)

    def heads(self, txn: AnyTransaction) -> Iterator[Head]:
        """Of all partitions. Their names are not kept: an entry knows its own."""
        with txn.cursor(self.rows) as cursor:
            if cursor.set_range(layout.HEAD):
                for name, data in cursor:
                    if bytes(name[:1]) != layout.HEAD:
                        return
                    yield Head.unpack(data)

    def first_key(self, txn: AnyTransaction, head: Head) -> bytes | None:
        """Of the oldest entry that is left."""
        prefix = layout.key_row(head.number, b"")
        with txn.cursor(self.slots) as cursor:
            if cursor.set_range(prefix) and bytes(cursor.key()).startswith(prefix):
                return bytes(cursor.value())
        return None

    def slot(self, txn: AnyTransaction, head: Head, key: bytes) -> int | None:
        data = txn.get(layout.key_row(head.number, key), db=self.keys)
        return None if data is None else int.from_bytes(data, "little")

    def rotation(self, txn: AnyTransaction, head: Head) -> Rotation:
        data = txn.get(layout.number_row(ROTATION, head.number), db=self.rows)
        return random_rotation(self.dims) if data is None else Rotation.unpack(data)

    def codes_since(self, txn: AnyTransaction, head: Head, slot: int) -> Iterator[tuple[int, Words, Words]]:
        """First slot, first words and other words of every run of entries from `slot` on."""
        for segment in range(slot // SEGMENT, head.sealed):
            first, others = layout.unpack_codes(self._row(txn, CODES, head.number, segment))
            skip = max(0, slot - segment * SEGMENT)
            yield segment * SEGMENT + skip, first[skip:], others[skip:]
        begin = max(slot, head.sealed * SEGMENT)
        if begin < head.count:
            codes = self._tail_entries(txn, head, begin)["code"]
            yield begin, codes[:, 0], codes[:, 1:]

    def removed(self, txn: AnyTransaction, head: Head) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """First slot of each segment with removals, and its marks [SEGMENT]."""
        for name, data in self._range(txn, REMOVED, head.number, 0):
            yield layout.index_of(name) * SEGMENT, layout.unpack_removed(data)

    def vectors(
        self, txn: AnyTransaction, head: Head, slots: NDArray[np.int32]
    ) -> tuple[NDArray[np.int8], Floats]:
        """INT8 embeddings [N, dims] and scales [N] of some slots."""
        scales, rows = [], []
        for slot in slots.tolist():
            data = txn.get(layout.row(VECTORS, head.number, slot // SEGMENT), db=self.rows)
            if data is not None:
                scale, vector = layout.vector_in(data, slot % SEGMENT, self.dims)
            else:
                scale, vector = layout.vector_of_tail(self._row(txn, TAIL, head.number, slot))
            scales.append(scale)
            rows.append(vector)
        # Joined, not taken from arrays row by row: 1 µs a slot instead of 3.
        return np.frombuffer(b"".join(rows), np.int8).reshape(-1, self.dims), np.array(scales, np.float32)

    def key(self, txn: AnyTransaction, head: Head, slot: int) -> bytes | None:
        """None when it was removed."""
        data = txn.get(layout.slot_row(head.number, slot), db=self.slots)
        return None if data is None else bytes(data)

    def change(
        self, txn: Transaction, partition: bytes, changes: Mapping[bytes, Floats | None]
    ) -> Head | None:
        """Adds the embedding of each key in place of an older one, or removes the key where there is None.

        Returns the head afterwards; None when nothing is left of the partition.
        """
        head = self.head(txn, partition) or Head(self._new_number(txn))
        head = self._remove(txn, head, changes)
        added = {key: embedding for key, embedding in changes.items() if embedding is not None}
        if added:
            head = self._append(txn, head, list(added), np.stack(list(added.values())))
        if head.dead == head.count:
            self._erase(txn, head.number)
            txn.delete(layout.head_row(partition), db=self.rows)
            return None
        if head.dead >= COMPACT_AT and 3 * head.dead >= head.count:
            head = self._compacted(txn, head)
        head = msgspec.structs.replace(head, changes=head.changes + 1)
        txn.put(layout.head_row(partition), head.pack(), db=self.rows)
        return head

    def wants_training(self, head: Head) -> bool:
        return head.generation == 0 and head.count >= TRAIN_AT

    def train(self, partition: bytes) -> None:
        """Learns a rotation from the first entries and rewrites the codes, unless another process was faster.

        Raises lmdb.Error when the file cannot be written; then nothing has changed.
        """
        with self._env.reading() as txn:
            head = self.head(txn, partition)
            if head is None or not self.wants_training(head):
                return
            entries = self._entries(txn, head, 0, TRAIN_AT)
        rotation = trained_rotation(restored(entries["vector"], entries["scale"]))
        with self._env.write() as write:
            current = self.head(write, partition)
            if current is None or current.number != head.number or not self.wants_training(current):
                return
            self._recode(write, current, rotation)
            current = msgspec.structs.replace(current, generation=1, changes=current.changes + 1)
            write.put(layout.head_row(partition), current.pack(), db=self.rows)

    def _remove(self, txn: Transaction, head: Head, keys: Mapping[bytes, object]) -> Head:
        slots = []
        for key in keys:
            data = txn.pop(layout.key_row(head.number, key), db=self.keys)
            if data is not None:
                slots.append(int.from_bytes(data, "little"))
                txn.delete(layout.slot_row(head.number, slots[-1]), db=self.slots)
        for segment in {slot // SEGMENT for slot in slots}:
            name = layout.row(REMOVED, head.number, segment)
            data = txn.get(name, db=self.rows)
            marks = np.zeros(SEGMENT, np.uint8) if data is None else layout.unpack_removed(data)
            marks[[slot % SEGMENT for slot in slots if slot // SEGMENT == segment]] = 1
            txn.put(name, layout.pack_removed(marks), db=self.rows)
        return msgspec.structs.replace(head, dead=head.dead + len(slots))

    def _append(self, txn: Transaction, head: Head, keys: list[bytes], embeddings: Floats) -> Head:
        entries = np.empty(len(keys), self._tail)
        entries["code"] = self.rotation(txn, head).encode(embeddings)
        entries["vector"], entries["scale"] = quantize(embeddings)
        return self._put(txn, head, keys, entries)

    def _put(self, txn: Transaction, head: Head, keys: list[bytes], entries: NDArray[np.void]) -> Head:
        """Appends entries whose arrays are made: those that fill a segment as planes, the rest as rows."""
        number, count = head.number, head.count
        for slot, key in enumerate(keys, count):
            txn.put(layout.key_row(number, key), slot.to_bytes(4, "little"), db=self.keys)
            txn.put(layout.slot_row(number, slot), key, db=self.slots)
        waiting, sealed = entries, head.sealed
        if count + len(keys) >= (sealed + 1) * SEGMENT and count > sealed * SEGMENT:
            waiting = np.concatenate([self._tail_entries(txn, head, sealed * SEGMENT), entries])
            for slot in range(sealed * SEGMENT, count):
                txn.delete(layout.row(TAIL, number, slot), db=self.rows)
        begin = count + len(keys) - len(waiting)
        while len(waiting) and begin == sealed * SEGMENT and len(waiting) >= SEGMENT:
            full, waiting = waiting[:SEGMENT], waiting[SEGMENT:]
            txn.put(layout.row(CODES, number, sealed), layout.pack_codes(full["code"]), db=self.rows)
            planes = layout.pack_vectors(full["vector"], full["scale"])
            txn.put(layout.row(VECTORS, number, sealed), planes, db=self.rows)
            sealed, begin = sealed + 1, begin + SEGMENT
        for slot, entry in enumerate(waiting, begin):
            txn.put(layout.row(TAIL, number, slot), entry.tobytes(), db=self.rows)
        return msgspec.structs.replace(head, count=count + len(keys), sealed=sealed)

    def _compacted(self, txn: Transaction, head: Head) -> Head:
        """A copy of the living entries under a new number; the old rows are gone."""
        new = Head(self._new_number(txn), changes=head.changes, generation=head.generation)
        rotation = txn.get(layout.number_row(ROTATION, head.number), db=self.rows)
        if rotation is not None:
            txn.put(layout.number_row(ROTATION, new.number), rotation, db=self.rows)
        living = np.ones(-(-head.count // SEGMENT) * SEGMENT, bool)
        for begin, marks in self.removed(txn, head):
            living[begin : begin + SEGMENT] = marks == 0
        for begin in range(0, head.count, _COPIED):
            end = min(begin + _COPIED, head.count)
            entries = self._entries(txn, head, begin, end)
            slots = np.flatnonzero(living[begin:end])
            keys = [self.key(txn, head, begin + slot) for slot in slots.tolist()]
            new = self._put(txn, new, [key for key in keys if key is not None], entries[slots])
        self._erase(txn, head.number)
        return new

    def _entries(self, txn: AnyTransaction, head: Head, begin: int, end: int) -> NDArray[np.void]:
        """[end - begin]; `begin` starts a segment."""
        entries = np.empty(end - begin, self._tail)
        for segment in range(begin // SEGMENT, min(head.sealed, -(-end // SEGMENT))):
            part = entries[segment * SEGMENT - begin :][:SEGMENT]
            first, others = layout.unpack_codes(self._row(txn, CODES, head.number, segment))
            part["code"][:, 0], part["code"][:, 1:] = first, others
            vectors, scales = layout.unpack_vectors(self._row(txn, VECTORS, head.number, segment))
            part["vector"], part["scale"] = vectors, scales
        if end > head.sealed * SEGMENT:
            entries[head.sealed * SEGMENT - begin :] = self._tail_entries(txn, head, head.sealed * SEGMENT)
        return entries

    def _recode(self, txn: Transaction, head: Head, rotation: Rotation) -> None:
        txn.put(layout.number_row(ROTATION, head.number), rotation.pack(), db=self.rows)
        for segment in range(head.sealed):
            vectors = layout.unpack_vectors(self._row(txn, VECTORS, head.number, segment))
            codes = rotation.encode(restored(*vectors))
            txn.put(layout.row(CODES, head.number, segment), layout.pack_codes(codes), db=self.rows)
        if head.count > head.sealed * SEGMENT:
            entries = self._tail_entries(txn, head, head.sealed * SEGMENT)
            entries["code"] = rotation.encode(restored(entries["vector"], entries["scale"]))
            for slot, entry in enumerate(entries, head.sealed * SEGMENT):
                txn.put(layout.row(TAIL, head.number, slot), entry.tobytes(), db=self.rows)

    def _tail_entries(self, txn: AnyTransaction, head: Head, begin: int) -> NDArray[np.void]:
        """The entries from slot `begin` on that lie in rows of their own."""
        found = b"".join(data for _, data in self._range(txn, TAIL, head.number, begin))
        entries = np.frombuffer(found, self._tail)
        assert len(entries) == head.count - begin, (len(entries), head, begin)
        return entries.copy()

    def _erase(self, txn: Transaction, number: int) -> None:
        for kind in (CODES, VECTORS, REMOVED, TAIL):
            self._delete_from(txn, self.rows, layout.number_row(kind, number))
        txn.delete(layout.number_row(ROTATION, number), db=self.rows)
        for database in (self.keys, self.slots):
            self._delete_from(txn, database, layout.key_row(number, b""))

    def _delete_from(self, txn: Transaction, database: lmdb._Database, prefix: bytes) -> None:
        with txn.cursor(database) as cursor:
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                found = cursor.delete()

    def _range(
        self, txn: AnyTransaction, kind: bytes, number: int, index: int
    ) -> Iterator[tuple[bytes, bytes]]:
        prefix = layout.number_row(kind, number)
        with txn.cursor(self.rows) as cursor:
            if cursor.set_range(layout.row(kind, number, index)):
                for name, data in cursor:
                    if bytes(name[: len(prefix)]) != prefix:
                        return
                    yield bytes(name), bytes(data)

    def _row(self, txn: AnyTransaction, kind: bytes, number: int, index: int) -> bytes | memoryview:
        data = txn.get(layout.row(kind, number, index), db=self.rows)
        assert data is not None, (kind, number, index)
        return data

    def _new_number(self, txn: Transaction) -> int:
        number = int.from_bytes(txn.get(layout.NEXT_ROW, db=self.rows) or b"", "little")
        txn.put(layout.NEXT_ROW, (number + 1).to_bytes(8, "little"), db=self.rows)
        return number

    def _check_format(self, txn: Transaction, dims: int | None) -> None:
        found = txn.get(layout.FORMAT_ROW, db=self.rows)
        if found is None:
            assert dims is not None, "an index without entries takes any length: say which"
            txn.put(layout.FORMAT_ROW, _FORMAT.pack(layout.FORMAT, dims), db=self.rows)
            self.dims = dims
            return
        form, kept = _FORMAT.unpack(found)
        if form != layout.FORMAT:
            raise ConfigError(
                f"The semantic index at {self._env.path} has format {form}; this Penstock reads format {layout.FORMAT}. "
                "Upgrade Penstock, choose another path, or delete the folder (only cached completions are lost).",
                param="cache.path",
            )
        self.dims = int(kept)
        if dims is not None:
            self.check_dims(dims)
