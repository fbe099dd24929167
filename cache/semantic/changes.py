"""Changes to the index on their way to disk: a bounded queue, and the one thread that commits it in batches.

As with completions, every commit is an fsync; changes are collected for `LINGER_SECONDS` and committed together.
"""

import functools
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import lmdb

from ..environment import CacheEnvironment
from .codes import Floats
from .layout import Head
from .store import SemanticStore

log = logging.getLogger(__name__)

LINGER_SECONDS = 0.01
MAX_QUEUED = 16_384
_FULL_BATCH = 4096
_CLOSE_SECONDS = 10.0

Result = TypeVar("Result")
Batch = dict[bytes, dict[bytes, Floats | None]]  # partition -> key -> what to add; None removes


class Changes:
    def __init__(self, environment: CacheEnvironment, store: SemanticStore) -> None:
        self.written = self.dropped = 0
        self._env, self._store = environment, store
        self._changed = threading.Condition()
        self._queued: Batch = {}
        self._num_queued = 0
        self._rounds_wanted = self._rounds_done = 0
        self._stopping = self._failing = False
        self._thread = threading.Thread(target=self._run, name="penstock-semantic-writer", daemon=True)
        self._thread.start()

    def put(self, partition: bytes, key: bytes, embedding: Floats | None) -> None:
        """Queues a change; the last of a key counts. An addition is dropped (counted) when the queue is full."""
        with self._changed:
            of_partition = self._queued.get(partition, {})
            if embedding is not None and key not in of_partition and self._num_queued >= MAX_QUEUED:
                self.dropped += 1
                return
            self._num_queued += key not in of_partition
            self._queued.setdefault(partition, of_partition)[key] = embedding
            if self._num_queued == 1 or self._num_queued >= _FULL_BATCH:
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

    def _run(self) -> None:
        def urgent() -> bool:
            return self._stopping or self._rounds_wanted > self._rounds_done

        while True:
            with self._changed:
                self._changed.wait_for(lambda: urgent() or bool(self._queued))
                self._changed.wait_for(lambda: urgent() or self._num_queued >= _FULL_BATCH, LINGER_SECONDS)
                batch, self._queued, self._num_queued = self._queued, {}, 0
                rounds, last = self._rounds_wanted, self._stopping
            self._write(batch)
            with self._changed:
                self._rounds_done = rounds
                self._changed.notify_all()
            if last:
                return

    def _write(self, batch: Batch) -> None:
        """One transaction, and training where it has become possible. Never raises."""
        if not batch:
            return
        size = sum(map(len, batch.values()))
        try:
            heads = self._with_room(lambda: self._commit(batch))
            self.written += size
            size = 0
            for partition, head in heads.items():
                if head is not None and self._store.wants_training(head):
                    self._with_room(functools.partial(self._store.train, partition))
        except (lmdb.Error, OSError) as error:
            self._warn(error)
        except Exception:
            log.exception("The semantic index's writer failed.")
        else:
            self._failing = False
        self.dropped += size

    def _commit(self, batch: Batch) -> dict[bytes, Head | None]:
        with self._env.write() as txn:
            return {name: self._store.change(txn, name, changes) for name, changes in batch.items()}

    def _with_room(self, write: Callable[[], Result]) -> Result:
        """What `write` returns, tried again with a larger map when it is full."""
        while True:
            try:
                return write()
            except lmdb.MapFullError:
                if not self._env.grow():
                    raise

    def _warn(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            log.warning(
                "The semantic index at %s cannot be written (%s): new completions are found only by their exact "
                "request. Check the disk, and the size of the cache.",
                self._env.path,
                error,
            )
