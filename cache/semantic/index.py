"""The semantic index as its users see it: add, search, remove, flush, close. Knows neither text nor completions.

A search takes the entries whose first code word is within `RADIUS` of the query's, keeps the `RERANKED` nearest by
all 256 bits, and orders those by the cosine of their INT8 embeddings.
"""

import os

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import PenstockError
from ..environment import CacheEnvironment
from .changes import Changes
from .codes import Floats
from .mirror import Mirrors, View
from .scan import scan
from .store import SemanticStore

# Of MiniLM embeddings of 14,000 descriptions of commands, the first word keeps all nearest neighbours above a cosine of 0.8
# and 99.7 % of those above 0.7; of all others 3 % pass (6 % before training).
RADIUS = 22
RERANKED = 32
_SMALL = 16_384  # entries: up to here all 256 bits of each are compared, in 30 µs
_ATTEMPTS = 5
MIN_DIMS = 256
MAX_KEY_BYTES = 500  # of LMDB's 511, a partition's number takes 8


class Match(msgspec.Struct, frozen=True):
    key: bytes
    similarity: float
    """Cosine of the embeddings, of which the stored one was rounded to INT8: off by less than 0.002."""


class SemanticIndex:
    """Keys found by the embeddings they were added with. Threads of a process share one; processes share the folder.

    Args:
        environment: the cache's; it must stay open until the index is closed.
        dims: the length of all embeddings, at least 256.
        mirror_bytes: memory for the codes of partitions in use, 33 bytes an entry; the last used partition may exceed it.

    Raises ConfigError when the folder holds embeddings of another length, PenstockError when `dims` is too small.
    """

    def __init__(
        self, environment: CacheEnvironment, dims: int = 384, *, mirror_bytes: int = 256 << 20
    ) -> None:
        if dims < MIN_DIMS:
            raise PenstockError(
                f"Embeddings of {dims} numbers are too short for a code of {MIN_DIMS} bits; use an embedder with at "
                f"least {MIN_DIMS}."
            )
        self._env, self._dims, self._process, self._closed = environment, dims, os.getpid(), False
        self._store = SemanticStore(environment, dims)
        self._mirrors = Mirrors(environment, self._store, mirror_bytes)
        self._changes = Changes(environment, self._store)

    def add(self, partition: bytes, key: bytes, embedding: ArrayLike) -> None:
        """Queues an entry and returns; searches of every process see it once it is committed, some 15 ms later.

        A key added before to the same partition gets the new embedding. Dropped, and counted, when the queue is full.
        Raises PenstockError when the embedding is not [dims] finite numbers, or the key not 1 to 500 bytes.
        """
        self._check_usable()
        self._check_key(key)
        self._changes.put(partition, key, self._unit(embedding))

    def remove(self, partition: bytes, key: bytes) -> None:
        """Queues a removal; a key that is not there is no error."""
        self._check_usable()
        self._check_key(key)
        self._changes.put(partition, key, None)

    def search(self, partition: bytes, embedding: ArrayLike, k: int = 1) -> list[Match]:
        """The `k` nearest entries of one partition by cosine, the nearest first; fewer when it has fewer.

        Raises PenstockError when the embedding is not [dims] finite numbers, or k not 1 to 32; lmdb.Error when the
        file cannot be read.
        """
        self._check_usable()
        if not 1 <= k <= RERANKED:
            raise PenstockError(f"k is {k}; a search gives 1 to {RERANKED} matches.")
        query = self._unit(embedding)
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

    def flush(self) -> None:
        """Blocks until all changes are synced to disk or given up."""
        self._check_usable()
        self._changes.flush()

    def close(self) -> None:
        """Writes what is queued. Again is harmless. The environment stays open."""
        if not self._closed and os.getpid() == self._process:
            self._changes.stop()
        self._closed = True

    @property
    def dropped(self) -> int:
        """Changes given up: the queue was full, or the file could not be written."""
        return self._changes.dropped

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

    def _unit(self, embedding: ArrayLike) -> Floats:
        """[dims] float32 of length 1."""
        values = np.asarray(embedding, np.float64)
        if values.shape != (self._dims,):
            raise PenstockError(
                f"The embedding has the shape {list(values.shape)}; this index holds vectors of {self._dims} numbers."
            )
        length = float(np.sqrt(values @ values))
        if not 0 < length < np.inf:
            raise PenstockError(
                f"The embedding's length is {length}; only finite vectors other than zero have a direction."
            )
        return (values / length).astype(np.float32)

    def _check_key(self, key: bytes) -> None:
        if not 1 <= len(key) <= MAX_KEY_BYTES:
            raise PenstockError(f"The key has {len(key)} bytes; the index takes 1 to {MAX_KEY_BYTES}.")

    def _check_usable(self) -> None:
        if self._closed:
            raise PenstockError(
                f"The semantic index at {self._env.path} is closed; open a new SemanticIndex."
            )
        if os.getpid() != self._process:
            raise PenstockError(
                f"The semantic index at {self._env.path} was opened before this process ({os.getpid()}) was forked; "
                "open the cache and its index after forking, or spawn."
            )
