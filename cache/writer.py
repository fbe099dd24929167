"""The one thread of a process that writes its cache: queue, batches, failures. Knows neither keys nor bodies.

Stores are collected for `LINGER_SECONDS` and committed together, since every commit is an fsync: alone a put
costs 255 µs, among 32 it costs 24 µs (measured). Until a store is on disk it is found in the queue.

When the file cannot be written (disk full, limits), stores are dropped with one warning and tried again after
`RETRY_SECONDS`; reading goes on. When the file turns out damaged, the cache is off. Serving never stops.
"""

import errno
import functools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

import lmdb
import msgspec

from ..errors import ConfigError
from .environment import INDEX_DATABASE, CacheEnvironment
from .ledger import Ledger
from .record import Record
from .trust.label_log import LabelLog
from .values import Question

if TYPE_CHECKING:
    from .semantic import SemanticIndex
    from .semantic.codes import Floats

log = logging.getLogger(__name__)

Result = TypeVar("Result")
State = Literal["on", "reading", "off"]

MAX_QUEUED = 1024
MAX_QUEUED_BYTES = 64 << 20
LINGER_SECONDS = 0.01
_FULL_BATCH = 512
_TICK = 5.0
_READER_CHECK_SECONDS = 60.0
RETRY_SECONDS = 30.0
_MAX_TOUCHES = 65536
_MAX_LABELS = 65536
_REMOVALS = 4096  # per transaction: a much smaller cap at reopening must not become one huge transaction
_EVICTIONS = 256  # until what they free in the index is counted, too
_CLOSE_SECONDS = 10.0

_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
)


class Pending(msgspec.Struct, frozen=True):
    """A store that is not on disk yet."""

    record: Record
    body: bytes
    question: Question | None = None
    embedding: "Floats | None" = None
    """Unit vector of the question, by which it is found; None keeps it out of the index."""


class Writer:
    """Start it with the environment open; it must be stopped before the environment closes.

    Attributes:
        index: changed together with the completions; None while nothing was ever found by meaning here.
    """

    def __init__(
        self,
        environment: CacheEnvironment,
        ledger: Ledger,
        label_log: LabelLog,
        clock: Callable[[], float],
    ) -> None:
        self.state: State = "on"
        self.index: SemanticIndex | None = None
        self.stored = self.dropped = self.evicted = self.expired = 0
        self._env, self._ledger, self._label_log, self._clock = environment, ledger, label_log, clock
        self._changed = threading.Condition()
        self._queued: dict[bytes, Pending] = {}
        self._queued_bytes = 0
        self._writing: dict[bytes, Pending] = {}
        self._touches: dict[bytes, int] = {}
        self._labels: deque[tuple[bytes, bytes]] = deque(maxlen=_MAX_LABELS)
        self._rounds_wanted = self._rounds_done = 0
        self._stopping = False
        self._more_to_remove = self._index_refused = False
        self._retry_at = 0.0
        self._readers_checked = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="penstock-cache-writer", daemon=True)
        self._thread.start()

    def find(self, place: bytes) -> Pending | None:
        """A store that is not on disk yet. Lock-free: two dict reads; an entry leaves after its commit."""
        return self._queued.get(place) or self._writing.get(place)

    def put(self, place: bytes, entry: Pending) -> None:
        """Queues a store; drops it (counted) when the queue is full or the file cannot be written now."""
        with self._changed:
            old = self._queued.get(place)
            total = self._queued_bytes + len(entry.body) - (len(old.body) if old else 0)
            full = total > MAX_QUEUED_BYTES or (old is None and len(self._queued) >= MAX_QUEUED)
            if full or self._stopping or self._resting():
                self.dropped += 1
                return
            self._queued_bytes = total
            self._queued[place] = entry
            if len(self._queued) == 1 or len(self._queued) >= _FULL_BATCH:
                self._changed.notify_all()

    def touch(self, place: bytes, moment: int) -> None:
        """Notes a use, written with the next round. Lock-free; past the bound, LRU only gets coarser."""
        if len(self._touches) < _MAX_TOUCHES:
            self._touches[place] = moment

    def note_label(self, family: bytes, row: bytes) -> None:
        """Written with the next round. Lock-free; past the bound the oldest are lost."""
        self._labels.append((family, row))

    def queued(self) -> int:
        return len(self._queued) + len(self._writing)

    def wake(self) -> None:
        """Asks for a round now, dead readers' slots included, without waiting for it."""
        with self._changed:
            self._readers_checked = -math.inf
            self._rounds_wanted += 1
            self._changed.notify_all()

    def flush(self) -> None:
        """Blocks until everything queued before is on disk, or given up."""
        with self._changed:
            self._rounds_wanted += 1
            mine = self._rounds_wanted
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._rounds_done >= mine or not self._thread.is_alive())

    def stop(self) -> bool:
        """Writes the queue and ends the thread; False if that hangs: another process has the write lock."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_SECONDS)
        return not self._thread.is_alive()

    def turn_off(self, error: Exception) -> None:
        """Neither read nor written from now on: the file is damaged, or fails in a way that will not pass."""
        if self.state != "off":
            self.state = "off"
            log.warning(
                "The completion cache at %s is off: its file is damaged or unusable (%s). Serving goes on "
                "without it; delete the folder and restart to have it back.",
                self._env.path,
                error,
            )

    def _resting(self) -> bool:
        """Whether the file is not to be written now."""
        return self.state == "off" or (self.state == "reading" and time.monotonic() < self._retry_at)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._wait_for_work()
                # `_writing` is set before `_queued` is emptied, so that `find` sees each entry throughout.
                self._writing = self._queued
                self._queued, self._queued_bytes = {}, 0
                touches, self._touches = self._touches, {}
                rounds, last = self._rounds_wanted, self._stopping
            # A copy: a lookup may have fetched the dict before the swap above and still add to it.
            self._round(self._writing, dict(touches))
            with self._changed:
                self._writing = {}
                self._rounds_done = rounds
                self._changed.notify_all()
            if last:
                return

    def _take_labels(self) -> dict[bytes, list[bytes]]:
        labels: dict[bytes, list[bytes]] = {}
        while self._labels:
            family, row = self._labels.popleft()
            labels.setdefault(family, []).append(row)
        return labels

    def _wait_for_work(self) -> None:
        def urgent() -> bool:
            return self._stopping or self._rounds_wanted > self._rounds_done or self._more_to_remove

        if self._changed.wait_for(lambda: urgent() or bool(self._queued), _TICK):
            self._changed.wait_for(lambda: urgent() or len(self._queued) >= _FULL_BATCH, LINGER_SECONDS)

    def _round(self, entries: dict[bytes, Pending], touches: dict[bytes, int]) -> None:
        """One transaction: stores, uses, expiry, eviction, and what they mean for the index. Never raises."""
        self._more_to_remove = False
        if self._resting():
            self.dropped += len(entries)
            return
        try:
            self._check_readers()
            self._commit(entries, touches)
        except _DAMAGE as error:
            self.dropped += len(entries)
            self.turn_off(error)
        except (lmdb.Error, OSError) as error:
            self.dropped += len(entries)
            self._pause(error)
        except Exception as error:
            self.dropped += len(entries)
            log.exception("The completion cache's writer failed.")
            self.turn_off(error)

    def _commit(self, entries: dict[bytes, Pending], touches: dict[bytes, int]) -> None:
        index, labels = self.known_index(), self._take_labels()
        try:
            expired, evicted, more, trainable = self._with_room(
                lambda: self._write(index, entries, touches, labels)
            )
        except BaseException:
            self._labels.extendleft(
                (family, row) for family, rows in labels.items() for row in reversed(rows)
            )
            raise
        self.stored += len(entries)
        self.expired += expired
        self.evicted += evicted
        self._more_to_remove = more
        if entries and self.state == "reading":
            self.state = "on"
            log.warning("The completion cache at %s can be written again.", self._env.path)
        if index is not None:
            for partition in trainable:
                self._with_room(functools.partial(index.train, partition))

    def known_index(self) -> "SemanticIndex | None":
        """Also where nothing embeds here: what is evicted must leave an index that another process has made."""
        if self.index is None and self._env.has_database(INDEX_DATABASE):
            from .semantic import SemanticIndex, has_entries

            try:
                if has_entries(self._env):
                    self.index = SemanticIndex(self._env)
            except ConfigError as error:  # of a newer format: only what is found by meaning suffers
                if not self._index_refused:
                    log.error("%s", error.message)
                self._index_refused = True
        return self.index

    def _write(
        self,
        index: "SemanticIndex | None",
        entries: dict[bytes, Pending],
        touches: dict[bytes, int],
        labels: dict[bytes, list[bytes]],
    ) -> tuple[int, int, bool, list[bytes]]:
        """The transaction: how many entries expired and how many were evicted, whether more are to go, and which
        partitions of the index can be trained."""
        ledger, trainable = self._ledger, []
        with self._env.write() as txn:
            changes = ledger.index_changes
            changes.clear()
            for place, entry in entries.items():
                ledger.put(txn, place, entry.record, entry.body)
                if entry.question is not None and entry.embedding is not None:
                    changes.setdefault(entry.question.partition, {})[place] = entry.embedding
            for place, moment in touches.items():
                ledger.touch(txn, place, moment)
            for family, rows in labels.items():
                self._label_log.append(txn, family, rows, self._clock())
            expired = ledger.expire(txn, self._clock(), _REMOVALS)
            if index is not None:
                trainable = index.change(txn, changes)
            evicted = 0
            for _ in range(_REMOVALS // _EVICTIONS):
                changes.clear()
                gone, more = ledger.evict(txn, _EVICTIONS)
                evicted += gone
                if index is not None:
                    index.change(txn, changes)
                if not gone:  # the index may grow by what it is told of the gone
                    break
        return expired, evicted, more or expired == _REMOVALS, trainable

    def _with_room(self, write: Callable[[], Result]) -> Result:
        """What `write` returns, tried again with a larger map when it is full."""
        while True:
            try:
                return write()
            except lmdb.MapFullError:
                if not self._env.grow():
                    raise

    def _pause(self, error: Exception) -> None:
        if self.state == "on":
            log.warning(
                "The completion cache at %s cannot be written (%s); new completions are not cached, "
                "reading goes on. %s Trying again every %g seconds.",
                self._env.path,
                error,
                _remedy(error),
                RETRY_SECONDS,
            )
        self.state = "reading"
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def _check_readers(self) -> None:
        now = time.monotonic()
        if now - self._readers_checked >= _READER_CHECK_SECONDS:
            self._readers_checked = now
            freed = self._env.check_readers()
            if freed:
                log.info("Freed %d reader slots of processes that died without closing the cache.", freed)


def _remedy(error: Exception) -> str:
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    if isinstance(error, lmdb.MapFullError):
        return "A stalled reader keeps freed pages from being used again: look for one with `mdb_stat -r`."
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "Free some disk space or lower the cache's size."
    if code == errno.EFBIG:
        return "Raise the process's file size limit (ulimit -f) or lower the cache's size."
    return "Check the disk and the folder's permissions."
