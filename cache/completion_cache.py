"""The completion cache as its users see it: look up, store, flush, close. Knows neither HTTP nor the engine.

Built to sit on an event loop: `lookup` reads LMDB inline (microseconds), `store` encodes and queues, one thread writes.
Completions stored with the embedding of their question are found by meaning, too: `nearest`, which is for a thread.
Any number of processes may open the same folder; each opens it once, after forking.
"""

import contextlib
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import lmdb

from ..errors import ConfigError, PenstockError
from .environment import CacheEnvironment
from .key import CacheKey
from .ledger import Ledger
from .record import Record, decode_body, decode_question, encode_body, new_record, stamp
from .trust.label_log import LabelLog
from .values import CachedCompletion, CacheHit, CacheStats, Neighbour, Question, WholePrompt
from .writer import Pending, Writer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MIN_BYTES = 1 << 20
_ENTRY_SHARE = 8  # one entry may take at most this part of the cap


class CompletionCache:
    """Completions kept on disk, shared by processes, gone when old, when least used, or never.

    Args:
        path: a folder of its own; created if missing.
        max_bytes: cap on the pages of live data; the file is longer by freed pages (twice under heavy churn).
        ttl: seconds until an entry is over, unless `store` says otherwise; None keeps it until it is evicted.
        clock: seconds; the same clock in all processes that share the folder.

    Raises ConfigError when a setting is wrong or the folder cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 1 << 30,
        ttl: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < MIN_BYTES:
            raise ConfigError(
                f"cache.max_bytes is {max_bytes}; it must be at least {MIN_BYTES} (1 MiB).",
                param="cache.max_bytes",
            )
        if ttl is not None and not ttl > 0:
            raise ConfigError(
                f"cache.ttl is {ttl}; it must be above 0 seconds, or left out for no limit.",
                param="cache.ttl",
            )
        self._max_bytes, self._ttl, self._clock = max_bytes, ttl, clock
        self._hits = self._misses = self._collisions = self._damaged = self._too_large = 0
        self._unusable: str | None = None
        self._env = CacheEnvironment(path, max_bytes=max_bytes)
        self._label_log = LabelLog(self._env, max_bytes=max_bytes)
        ledger = Ledger(self._env, max_bytes=max_bytes)
        self._writer = Writer(self._env, ledger, self._label_log, clock)
        _open_caches.add(self)

    def open_index(self, dims: int) -> None:
        """Lets completions be stored and found by embeddings of `dims` numbers. Again is harmless.

        Raises ConfigError when the folder holds embeddings of another length, PenstockError when `dims` is too small.
        """
        index = self._writer.index
        if index is not None:
            index.check_dims(dims)
            return
        from .semantic import SemanticIndex  # late: numpy takes a tenth of a second

        self._writer.index = SemanticIndex(self._env, dims)

    def lookup(self, key: CacheKey) -> CacheHit | None:
        """The completion stored under `key`, unless it is over. Never waits for a writer; event-loop safe.

        Raises PenstockError only when the cache was closed, or opened before this process was forked.
        """
        found = self._find(key.place)
        if found is None:
            self._misses += 1
            return None
        record, body = found
        now = self._clock()
        if now >= record.expires:
            self._misses += 1
            return None
        if record.digest != key.digest:
            self._misses += 1
            self._collisions += 1
            return None
        completion = decode_body(body, record.checksum)
        if completion is None:
            self._misses += 1
            self._damaged += 1
            return None
        self._hits += 1
        self._writer.touch(key.place, stamp(now))
        return CacheHit(completion, max(0.0, now - record.created))

    def nearest_is_quick(self, partition: bytes) -> bool:
        """Whether `nearest` may be called on an event loop: a small partition, asked before."""
        index = self._writer.index
        return index is not None and index.is_quick(partition)

    def nearest(self, partition: bytes, embedding: "ArrayLike", k: int = 1) -> list[Neighbour]:
        """The `k` completions of a partition whose questions are nearest by cosine, the nearest first.

        For a thread, unless `nearest_is_quick`. Empty where nothing can be read. Raises PenstockError when the embedding
        is none of this index, or k not 1 to 32, or the cache was closed or forked.
        """
        self._check_usable()
        if self._writer.state == "off":
            return []
        try:
            index = self._writer.known_index()
            matches = [] if index is None else index.search(partition, embedding, k)
        except lmdb.Error as error:
            self._failed_to_read(error)
            return []
        found = (self._neighbour(partition, match.key, match.similarity) for match in matches)
        return [neighbour for neighbour in found if neighbour is not None]

    def _neighbour(self, partition: bytes, place: bytes, similarity: float) -> Neighbour | None:
        found = self._find(place)
        if found is None:
            return None
        record, body = found
        now = self._clock()
        completion, question = decode_body(body, record.checksum), decode_question(body)
        if completion is None or question is None or now >= record.expires:
            return None
        if question.partition != partition:
            return None
        return Neighbour(place, similarity, question, completion, max(0.0, now - record.created))

    def touch(self, place: bytes) -> None:
        """Notes that a neighbour was of use, so that it is not the next to be evicted."""
        self._check_usable()
        self._writer.touch(place, stamp(self._clock()))

    def note_label(self, family: bytes, row: bytes) -> None:
        """Queues what verification said about a near hit; on disk within seconds. `family`: 24 bytes."""
        self._check_usable()
        self._writer.note_label(family, row)

    def labels(self, family: bytes, since: int = 0) -> tuple[bytes, int]:
        """The rows of a family from number `since` on, and how many there ever were. For a thread; nothing where
        nothing can be read."""
        self._check_usable()
        parts: list[bytes] = []
        count = since + 1
        while since < count and self._writer.state != "off":
            try:
                # In parts: an event loop's lookups wait for whoever reads.
                with self._env.reading() as txn:
                    rows, since, count = self._label_log.read(txn, family, since)
            except lmdb.Error as error:
                self._failed_to_read(error)
                break
            parts.append(rows)
        return b"".join(parts), since

    def store(
        self,
        key: CacheKey,
        completion: CachedCompletion,
        *,
        ttl: float | None = None,
        question: Question | None = None,
        embedding: "ArrayLike | None" = None,
        prompt: WholePrompt | None = None,
    ) -> None:
        """Queues a completion and returns; this process finds it at once, others after the commit.

        Dropped, and counted, when the queue is full, the disk cannot be written, or the entry is larger than
        an eighth of the cap. `ttl` in seconds overrides the cache's; 0 or less stores nothing.

        With a `question` and its `embedding` (after `open_index`) it is found by meaning, too, once it is committed.
        A `prompt` is kept beside it, unless the entry were too large with it.
        Raises PenstockError when the embedding is none of this index.
        """
        self._check_usable()
        ttl = self._ttl if ttl is None else ttl
        if ttl is not None and not ttl > 0:
            return
        most = self._max_bytes // _ENTRY_SHARE
        body = encode_body(completion, question, prompt)
        if len(body) > most and prompt is not None:
            body = encode_body(completion, question)
        if len(body) > most:
            self._too_large += 1
            return
        record = new_record(body, key.digest, self._clock(), ttl)
        index = self._writer.index
        vector = None if embedding is None or index is None else index.unit(embedding)
        self._writer.put(key.place, Pending(record, body, question, vector))

    def flush(self) -> None:
        """Blocks until all stores are synced to disk or given up (see `stats`). Not for the event loop."""
        self._check_usable()
        self._writer.flush()

    def close(self) -> None:
        """Writes what is queued and closes the file. Again is harmless."""
        if self._unusable is not None:
            return
        self._unusable = "closed"
        _open_caches.discard(self)
        if self._writer.stop():
            self._env.close()
        # Else the thread waits for another process's write lock: unmapping the file under it would crash us.

    def stats(self) -> CacheStats:
        writer = self._writer
        entries = used = file_bytes = 0
        if self._unusable is None and writer.state != "off":
            with contextlib.suppress(lmdb.Error):  # the map was outgrown just now, or the file is damaged
                entries, used, file_bytes = self._env.measure()
        return CacheStats(
            entries=entries,
            used_bytes=used,
            max_bytes=self._max_bytes,
            file_bytes=file_bytes,
            hits=self._hits,
            misses=self._misses,
            collisions=self._collisions,
            damaged=self._damaged,
            stored=writer.stored,
            dropped=writer.dropped + self._too_large,
            evicted=writer.evicted,
            expired=writer.expired,
            queued=writer.queued(),
            state=self._unusable or writer.state,
        )

    def __enter__(self) -> "CompletionCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, place: bytes) -> tuple[Record, bytes] | None:
        """The newest version of an entry: still queued, or on disk."""
        self._check_usable()
        pending = self._writer.find(place)
        if pending is not None:
            return pending.record, pending.body
        if self._writer.state == "off":
            return None
        try:
            return self._env.read(place)
        except lmdb.Error as error:
            self._failed_to_read(error)
        return None

    def _failed_to_read(self, error: lmdb.Error) -> None:
        if self._unusable is not None:
            return  # closed while a thread read
        if isinstance(error, lmdb.MapResizedError | lmdb.ReadersFullError):
            self._writer.wake()  # its next round adopts the grown map or frees dead slots; meanwhile a miss
        else:
            self._writer.turn_off(error)

    def _check_usable(self) -> None:
        if self._unusable is None:
            return
        if self._unusable == "forked":
            raise PenstockError(
                f"The cache at {self._env.path} was opened before this process ({os.getpid()}) was forked; "
                "LMDB allows no handle across fork. Open the CompletionCache after forking, or spawn."
            )
        raise PenstockError(f"The cache at {self._env.path} is closed; open a new CompletionCache.")

    def _forget_in_child(self) -> None:
        # The writer thread and the locks' owners stay in the parent: nothing here may be waited for or
        # closed.
        self._unusable = "forked"


_open_caches: "weakref.WeakSet[CompletionCache]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for cache in list(_open_caches):
        cache._forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
