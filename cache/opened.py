"""A cache opened beside the servers that use it: read, changed and copied. Knows no server, and no reason for a change.

Unlike CompletionCache it has no writer, so that looking at a cache neither expires nor evicts anything, whatever cap
the one who looks has set.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import lmdb
import msgspec

from ..errors import ConfigError, PenstockError
from .environment import INDEX_DATABASE, CacheEnvironment, ReadTransaction, Transaction
from .ledger import Ledger
from .record import Record, body_key, decode_body, decode_prompt, decode_question, split_line, unpack_record
from .trust.label_log import LabelLog
from .values import CachedCompletion, Question, WholePrompt

if TYPE_CHECKING:
    from .semantic import SemanticIndex, Stored

Result = TypeVar("Result")

# What one read transaction copies: while it lasts, pages that servers free are not used again.
_CHUNK_ENTRIES, _CHUNK_BYTES = 256, 8 << 20


class Entry(msgspec.Struct, frozen=True):
    """An entry as it lay there when it was read. `embedding`: only where it was asked for and is kept."""

    place: bytes
    record: Record
    body: bytes
    embedding: "Stored | None" = None

    @property
    def completion(self) -> CachedCompletion | None:
        """None when it is damaged."""
        return decode_body(self.body, self.record.checksum)

    @property
    def question(self) -> Question | None:
        """None when it was kept without, and so is found by its key only."""
        return decode_question(self.body)

    @property
    def prompt(self) -> WholePrompt | None:
        """None when it was kept without."""
        return decode_prompt(self.body)


@contextmanager
def opened_cache(path: Path, *, max_bytes: int, create: bool = False) -> Iterator["OpenedCache"]:
    """The cache in a folder, closed at the end. `max_bytes`: the servers' cap, from which the room to grow follows.

    Raises ConfigError when there is none (unless `create`) or it cannot be used, PenstockError when that fails later.
    """
    data = path / "data.mdb"
    if not create and not data.is_file():
        raise ConfigError(
            f"There is no cache at {path}; name its folder with --cache-path. `penstock serve` makes one.",
            param="cache_path",
        )
    size = data.stat().st_size if data.is_file() else 0
    environment = CacheEnvironment(path, max_bytes=max(max_bytes, size))
    try:
        yield OpenedCache(environment, max_bytes)
    except lmdb.Error as error:
        raise PenstockError(
            f"The cache at {path} cannot be read or written ({error}); check the disk and the folder's permissions."
        ) from error
    finally:
        environment.close()


class OpenedCache:
    """Of one thread. `index` is None while nothing was ever found by meaning here."""

    def __init__(self, environment: CacheEnvironment, max_bytes: int) -> None:
        self.environment = environment
        self.max_bytes = max_bytes
        self.ledger = Ledger(environment, max_bytes=max_bytes)
        self.index: SemanticIndex | None = None
        self.label_log = LabelLog(environment, max_bytes=max_bytes)
        self._adopt_index()

    def open_index(self, dims: int | None) -> None:
        """Raises PenstockError when `dims` is too small."""
        from .semantic import SemanticIndex

        self.index = SemanticIndex(self.environment, dims)

    def entry(self, place: bytes) -> Entry | None:
        with self.environment.reading() as txn:
            return self._entry(txn, place, with_embedding=False)

    def entries(self, prefix: bytes = b"", *, with_embeddings: bool = False) -> Iterator[Entry]:
        """All whose place begins with `prefix`, in the order of their places.

        Read in chunks, each as it was at one moment: what is there all the time comes once and whole, what comes or
        goes meanwhile may or may not be among them.
        """
        start: bytes | None = prefix
        while start is not None:
            chunk, start = self._chunk(prefix, start, with_embeddings)
            yield from chunk

    def newest_first(self) -> Iterator[Entry]:
        """All, by the time they were stored; in chunks, as `entries`."""
        end: bytes | None = b"\xff" * 9  # behind every line
        while end is not None:
            chunk, end = self._chunk_before(end)
            yield from chunk

    def change(self, change: Callable[[Transaction], Result]) -> Result:
        """One transaction: what `change` does through the ledger, and what follows for the index.

        `change` is called again when the map was too small. Raises PenstockError when it may not grow any more.
        """
        self._adopt_index()  # servers may have begun one since
        result, trainable = self._with_room(partial(self._change, change))
        for partition in trainable:
            assert self.index is not None
            self._with_room(partial(self.index.train, partition))
        return result

    def _adopt_index(self) -> None:
        if self.index is None and self.environment.has_database(INDEX_DATABASE):
            from .semantic import has_entries

            if has_entries(self.environment):
                self.open_index(None)

    def _change(self, change: Callable[[Transaction], Result]) -> tuple[Result, list[bytes]]:
        with self.environment.write() as txn:
            self.ledger.index_changes.clear()
            result = change(txn)
            return result, [] if self.index is None else self.index.change(txn, self.ledger.index_changes)

    def _with_room(self, write: Callable[[], Result]) -> Result:
        while True:
            try:
                return write()
            except lmdb.MapFullError:
                if not self.environment.grow():
                    raise PenstockError(
                        f"The cache at {self.environment.path} has no room left under its cap of {self.max_bytes} bytes; "
                        "raise --cache-max-bytes, or look for a stalled reader with `mdb_stat -r`."
                    ) from None

    def _chunk(self, prefix: bytes, start: bytes, with_embeddings: bool) -> tuple[list[Entry], bytes | None]:
        """Entries from `start` on, and where to go on; None at the end."""
        chunk: list[Entry] = []
        size = 0
        with self.environment.reading() as txn, txn.cursor(self.environment.records) as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            while found and (place := bytes(cursor.key())).startswith(prefix):
                if len(chunk) == _CHUNK_ENTRIES or size >= _CHUNK_BYTES:
                    return chunk, place
                entry = self._entry(txn, place, with_embedding=with_embeddings)
                if entry is not None:
                    chunk.append(entry)
                    size += len(entry.body)
                found = cursor.next()
        return chunk, None

    def _chunk_before(self, end: bytes) -> tuple[list[Entry], bytes | None]:
        chunk: list[Entry] = []
        size = 0
        with self.environment.reading() as txn, txn.cursor(self.environment.bodies) as cursor:
            found = cursor.prev() if cursor.set_range(end) else cursor.last()
            while found:
                if len(chunk) == _CHUNK_ENTRIES or size >= _CHUNK_BYTES:
                    return chunk, end
                end = bytes(cursor.key())
                entry = self._entry(txn, split_line(end)[1], with_embedding=False)
                if entry is not None:
                    chunk.append(entry)
                    size += len(entry.body)
                found = cursor.prev()
        return chunk, None

    def _entry(self, txn: ReadTransaction, place: bytes, *, with_embedding: bool) -> Entry | None:
        data = txn.get(place, db=self.environment.records)
        record = None if data is None else unpack_record(bytes(data))
        found = None if record is None else txn.get(body_key(record, place), db=self.environment.bodies)
        if record is None or found is None:
            return None
        body, embedding = bytes(found), None
        if with_embedding and self.index is not None and (question := decode_question(body)) is not None:
            embedding = self.index.stored(txn, question.partition, place)
        return Entry(place, record, body, embedding)
