"""The LMDB environment of a cache: opened with care, grown when full, read without waiting. Knows no policy.

Facts this file is built on (py-lmdb 3.0, LMDB 0.9.36, tried on Linux):
- A read transaction with two gets costs 4 µs and does not wait for a writer, not even during its fsync.
- The file is as long as the pages ever used, whatever the map size; so a large map costs only address space.
- `set_mapsize` replaces the mapping under every reader and writer of this process. Hence the rule here: it is called
  with `_write_lock` held, outside any transaction of the caller's, and `_map_lock` keeps readers out meanwhile.
- LMDB trusts its file: a page missing at the end is a SIGBUS later, not an error; so the length is checked.
"""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import lmdb
import orjson

from ..errors import ConfigError
from .record import Record, body_key, unpack_record

Transaction: TypeAlias = "lmdb.Transaction[bytes]"  # quoted: the class takes no parameters at run time
ReadTransaction: TypeAlias = "lmdb.Transaction[memoryview]"

FORMAT = 1
_MARKER = b"penstock completion cache"
INDEX_DATABASE = b"semantic"
_OWN = (b"records", b"bodies", b"order", b"expiry")
_MAX_READERS = 1024
_MAX_DATABASES = 16
_MIN_MAP = 64 << 20
_MAP_LIMIT = 4  # times max_bytes: beyond it a stalled reader holds pages back, and growing would only hide it


class CacheEnvironment:
    """One opened environment and its databases.

    records   place -> Record              bodies   stamp|place -> encoded completion (stamp: when created)
    order     stamp|place -> nothing       expiry   stamp|place -> nothing (entries with a time to live)

    Bodies lie in the order of their creation, not of their hashed places: they fill pages one after the other
    and leave together. A store then writes half the pages (1.9 KB each, synced by the 512: 28 µs, not 52).

    Raises ConfigError when the folder cannot be used: not ours, newer, damaged, unreadable, or open already.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self._map_lock = threading.Lock()
        self._write_lock = threading.Lock()  # taken before `_map_lock` where both are
        self._map_limit = max(_MIN_MAP, _MAP_LIMIT * max_bytes)
        self._env = _open(path, max(_MIN_MAP, 2 * max_bytes))
        try:
            self._env.reader_check()
            _check_length(self._env, path)
            with self.write() as txn:
                _check_marker(txn, path)
                self._databases = {name: self._env.open_db(name, txn) for name in _OWN}
                self.records, self.bodies, self.order, self.expiry = self._databases.values()
                self.page_size = txn.stat(self.records)["psize"]
        except lmdb.Error as error:
            self._env.close()
            raise _unusable(path, error) from error
        except BaseException:
            self._env.close()
            raise

    def read(self, place: bytes) -> tuple[Record, bytes] | None:
        """An entry as stored, or None. Any thread; holds no transaction afterwards.

        Raises lmdb.MapResizedError after another process has grown the file: the writing thread's next
        transaction adopts the new size.
        """
        with self._map_lock, self._env.begin() as txn:
            data = txn.get(place, db=self.records)
            record = None if data is None else unpack_record(data)
            body = None if record is None else txn.get(body_key(record, place), db=self.bodies)
        return None if record is None or body is None else (record, body)

    @contextmanager
    def reading(self) -> Iterator[ReadTransaction]:
        """A read transaction whose values are views, dead when the block ends. Any thread; keep it short.

        A file that another process has grown is adopted first, which waits for a writer of this process.
        """
        while True:
            with self._map_lock:
                try:
                    txn = self._env.begin(buffers=True)
                except lmdb.MapResizedError:
                    pass
                else:
                    with txn:
                        yield txn
                    return
            with self._write_lock:
                self._resize(0)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A write transaction, synced to disk when the block ends, undone when it raises. Waits for another thread's."""
        with self._write_lock:
            try:
                txn = self._env.begin(write=True)
            except lmdb.MapResizedError:
                self._resize(0)  # 0 adopts the size another process has set
                txn = self._env.begin(write=True)
            with txn:
                yield txn

    def grow(self) -> bool:
        """Makes room after MapFullError; False at the limit. Outside transactions."""
        with self._write_lock:
            if self._env.reader_check():
                return True  # a dead reader was what kept freed pages from being used
            size = self._env.info()["map_size"]
            if size >= self._map_limit:
                return False
            self._resize(min(2 * size, self._map_limit))
            return True

    def has_database(self, name: bytes) -> bool:
        with self.reading() as txn, txn.cursor() as cursor:
            return cursor.set_key(name)

    def open_database(self, name: bytes) -> lmdb._Database:
        """A further database of this environment, created if missing."""
        if name not in self._databases:
            with self.write() as txn:
                database = self._env.open_db(name, txn)
            self._databases[name] = database
        return self._databases[name]

    def check_readers(self) -> int:
        """Frees the reader slots of processes that died; how many there were."""
        return self._env.reader_check()

    def used_bytes(self, txn: Transaction) -> int:
        """Bytes of pages with live data. LMDB counts them: exact in every process, and after any crash."""
        pages = 0
        for database in list(self._databases.values()):  # another thread may open one
            stat = txn.stat(database)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * self.page_size

    def measure(self) -> tuple[int, int, int]:
        """Entries, used bytes, length of the file."""
        with self._map_lock, self._env.begin() as txn:
            entries, used = txn.stat(self.records)["entries"], self.used_bytes(txn)
        return entries, used, (self.path / "data.mdb").stat().st_size

    def copy(self, file: BinaryIO) -> None:
        """What is committed now, without freed pages, into a file; others write meanwhile.

        One read transaction: until it is done, pages that others free are not used again.
        """
        with self._map_lock:
            self._env.copyfd(file.fileno(), compact=True)

    def close(self) -> None:
        with self._map_lock:
            self._env.close()

    def _resize(self, size: int) -> None:
        with self._map_lock:
            self._env.set_mapsize(size)


def _open(path: Path, map_size: int) -> lmdb.Environment:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return lmdb.open(
            str(path),
            map_size=map_size,
            mode=0o700,  # completions are private; LMDB drops the execute bits for the files
            max_dbs=_MAX_DATABASES,
            max_readers=_MAX_READERS,
            max_spare_txns=1,  # p50 9 µs instead of 14 beside a busy writer, measured
            readahead=False,  # entries are read at random
        )
    except (lmdb.Error, OSError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> ConfigError:
    if "already open" in str(error):
        message = (
            f"The cache at {path} is already open in this process, or was when this process was forked; "
            "LMDB allows one handle per process. Share one CompletionCache, or close the first; "
            "with several processes, open it in each one after forking."
        )
    elif isinstance(error, OSError) or getattr(error, "code", 0) in errno.errorcode:
        message = (
            f"The cache at {path} cannot be opened ({error}); make it a writable folder, "
            "or choose another path."
        )
    else:
        message = _damaged(path, str(error))
    return ConfigError(message, param="cache.path")


def _damaged(path: Path, why: str) -> str:
    return (
        f"The cache at {path} is not a readable LMDB file ({why}). Move the folder away or delete it "
        "(only cached completions are lost), or choose another path."
    )


def _check_length(env: lmdb.Environment, path: Path) -> None:
    data = path / "data.mdb"
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if data.stat().st_size >= expected:
        return
    # Short files can be sound: pages allocated and freed within one transaction are never written. The slow
    # and certain check reads every page without LMDB; the write lock keeps other processes from changing
    # them.
    from lmdb.verify import verify

    with env.begin(write=True):
        findings: list[str] = verify(str(data), subdir=False)  # type: ignore[no-untyped-call]  # has no stub
    if findings:
        raise ConfigError(
            _damaged(path, f"{data.stat().st_size} bytes of {expected}: {findings[0]}"), param="cache.path"
        )


def _check_marker(txn: Transaction, path: Path) -> None:
    marker = txn.get(_MARKER)
    if marker is None:
        if txn.stat()["entries"]:
            raise ConfigError(
                f"The LMDB folder {path} holds another program's data; choose another path for the cache.",
                param="cache.path",
            )
        txn.put(_MARKER, orjson.dumps({"format": FORMAT}))
        return
    try:
        found = orjson.loads(marker)["format"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(_damaged(path, f"its format is noted as {marker!r}"), param="cache.path") from None
    if found != FORMAT:
        raise ConfigError(
            f"The cache at {path} has format {found}; this Penstock reads format {FORMAT}. Upgrade Penstock, "
            "choose another path, or delete the folder (only cached completions are lost).",
            param="cache.path",
        )
