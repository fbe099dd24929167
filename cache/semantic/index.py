"""The semantic index as the cache uses it: searched in any thread, changed in a transaction. Knows keys, not completions.

A search takes the entries whose first code word is within `RADIUS` of the query's, keeps the `RERANKED` nearest by
all 256 bits, and orders those by the cosine of their INT8 embeddings.
"""

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import PenstockError
from ..environment import CacheEnvironment, Transaction
from .codes import Bytes, Floats
from .mirror import Mirrors, View
from .scan import scan
from .store import AnyTransaction, SemanticStore

# Of MiniLM embeddings of 14,000 descriptions of commands, the first word keeps all nearest neighbours above a cosine of 0.8
# and 99.7 % of those above 0.7; of all others 3 % pass (6 % before training).
RADIUS = 22
RERANKED = 32
_SMALL = 16_384  # entries: up to here all 256 bits of each are compared, in 30 µs
_ATTEMPTS = 5
MIN_DIMS = 256

Changes = Mapping[
    bytes, Mapping[bytes, Floats | None]
]  # partition -> key -> unit vector to add; None removes


class Match(msgspec.Struct, frozen=True):
    key: bytes
    similarity: float
    """Cosine of the embeddings, of which the stored one was rounded to INT8: off by less than 0.002."""


class Shape(msgspec.Struct, frozen=True):
    """Of one partition.

    Attributes:
        entries: that are found.
        dead: slots of entries that were removed, until the next compaction.
        trained: codes come from a rotation that was fitted to its entries.
        key: one of its entries, whose question knows the partition's name.
    """

    entries: int
    dead: int
    trained: bool
    key: bytes


class Stored(msgspec.Struct, frozen=True):
    """An embedding as it is kept: INT8 [dims], and the scale that makes it a unit vector."""

    vector: Bytes
    scale: float


class SemanticIndex:
    """Keys found by the embeddings they were added with. Threads of a process share one; processes share the folder.

    Args:
        environment: the cache's.
        dims: the length of all embeddings, at least 256; None takes that of the embeddings in the folder.
        mirror_bytes: memory for the codes of partitions in use, 33 bytes an entry; the last used partition may exceed it.

    Raises ConfigError when the folder holds embeddings of another length, PenstockError when `dims` is too small.
    """

    def __init__(
        self, environment: CacheEnvironment, dims: int | None = None, *, mirror_bytes: int = 256 << 20
    ) -> None:
        if dims is not None and dims < MIN_DIMS:
            raise PenstockError(
                f"Embeddings of {dims} numbers are too short for a code of {MIN_DIMS} bits; use an embedder with at "
                f"least {MIN_DIMS}."
            )
        self._env = environment
        self._store = SemanticStore(environment, dims)
        self.dims = self._store.dims
        self._mirrors = Mirrors(environment, self._store, mirror_bytes)

    def check_dims(self, dims: int) -> None:
        """Raises ConfigError unless embeddings of `dims` numbers are the ones kept here."""
        self._store.check_dims(dims)

    def change(self, txn: Transaction, changes: Changes) -> list[bytes]:
        """Adds and removes; returns the partitions that can be trained now. A key that is not there is no error.

        Searches of every process see it once `txn` is committed. A key added before gets the new embedding.
        """
        trainable = []
        for partition, of_partition in changes.items():
            head = self._store.change(txn, partition, of_partition)
            if head is not None and self._store.wants_training(head):
                trainable.append(partition)
        return trainable

    def train(self, partition: bytes) -> None:
        """Fits the codes of a partition to its entries: a second of work, in transactions of its own.

        Raises lmdb.Error when the file cannot be written; then nothing has changed.
        """
        self._store.train(partition)

    def is_quick(self, partition: bytes) -> bool:
        """Whether a search there takes a tenth of a millisecond, so that an event loop may do it."""
        return self._mirrors.holds(partition, _SMALL)

    def search(self, partition: bytes, embedding: ArrayLike, k: int = 1) -> list[Match]:
        """The `k` nearest entries of one partition by cosine, the nearest first; fewer when it has fewer.

        For an event loop only where it `is_quick`: else it takes milliseconds, or tenths of a second the first time.
        Raises PenstockError when the embedding is not [dims] finite numbers, or k not 1 to 32; lmdb.Error when the
        file cannot be read.
        """
        if not 1 <= k <= RERANKED:
            raise PenstockError(f"k is {k}; a search gives 1 to {RERANKED} matches.")
        query = self.unit(embedding)
        for _ in range(_ATTEMPTS):
            view = self._mirrors.view(partition)
            if view is None:
                return []
            code = view.rotation.encode(query[None])[0]
            radius = 64 if len(view.first) <= _SMALL else RADIUS
            _, slots = scan(view.first, view.rest, view.alive, code, radius=radius, keep=RERANKED)
            matches = self._ranked(partition, view, query, slots, k)
            if matches is not None:
                return matches
        return []  # compacted each time while it was scanned: as good as a miss

    def shapes(self, txn: AnyTransaction) -> Iterator[Shape]:
        """Of all partitions: a row read for each, whatever their entries."""
        for head in self._store.heads(txn):
            key = self._store.first_key(txn, head)
            if key is not None:
                yield Shape(head.count - head.dead, head.dead, head.generation > 0, key)

    def stored(self, txn: AnyTransaction, partition: bytes, key: bytes) -> Stored | None:
        """What is kept of an entry's embedding; None when it is not found by meaning."""
        head = self._store.head(txn, partition)
        slot = None if head is None else self._store.slot(txn, head, key)
        if head is None or slot is None:
            return None
        vectors, scales = self._store.vectors(txn, head, np.array([slot], np.int32))
        return Stored(vectors[0], float(scales[0]))

    def _ranked(
        self, partition: bytes, view: View, query: Floats, slots: NDArray[np.int32], k: int
    ) -> list[Match] | None:
        """The best k of some slots; None when the partition was compacted since, so that slots are others."""
        with self._env.reading() as txn:
            head = self._store.head(txn, partition)
            if head is None or head.number != view.head.number:
                return None
            vectors, scales = self._store.vectors(txn, head, slots)
            cosines = np.minimum((vectors.astype(np.float32) @ query) * scales, np.float32(1))
            matches: list[Match] = []
            for place in np.argsort(-cosines, kind="stable").tolist():
                key = self._store.key(txn, head, int(slots[place]))
                if key is not None:
                    matches.append(Match(key, float(cosines[place])))
                if len(matches) == k:
                    break
        return matches

    def unit(self, embedding: ArrayLike) -> Floats:
        """[dims] float32 of length 1. Raises PenstockError for what has no direction."""
        values = np.asarray(embedding, np.float64)
        if values.shape != (self.dims,):
            raise PenstockError(
                f"The embedding has the shape {list(values.shape)}; this index holds vectors of {self.dims} numbers."
            )
        length = float(np.sqrt(values @ values))
        if not 0 < length < np.inf:
            raise PenstockError(
                f"The embedding's length is {length}; only finite vectors other than zero have a direction."
            )
        return (values / length).astype(np.float32)
