"""The two LMDB files of a tenants' folder, opened as each needs it. The only module of the proxy that knows LMDB.

    keys/      keys and tenants: synced to disk with every change.
    counters/  what is taken and used: written thousands of times a second, so handed to the operating system only, and to
               the disk every SYNC_SECONDS. A process that is killed loses nothing; a machine that loses power loses the last
               seconds, and perhaps the file, which is therefore checked once after every boot, and set aside if damaged.

Two files, so that neither waits for the other's lock: a change of a key takes a sync of milliseconds.
Measured (py-lmdb 3.0, LMDB 0.9.36): a transaction that reads and writes one small value takes 5 µs unsynced, a read 0.7 µs.
"""

import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import lmdb

from ...errors import ConfigError
from .process import boot_name

log = logging.getLogger(__name__)

StoreError = lmdb.Error
Transaction: TypeAlias = "lmdb.Transaction[bytes]"  # quoted: the class takes no parameters at run time
Database: TypeAlias = "lmdb._Database"

SYNC_SECONDS = 5.0
# Address space, not disk: the files are as long as what is in them.
_MAP_BYTES = 16 << 30
_MAX_READERS = 1024
_FORMAT_KEY = b"penstock tenants"
_FORMAT = b"1"


class Environment:
    """One opened file and its databases."""

    def __init__(self, path: Path, names: tuple[bytes, ...], *, durable: bool) -> None:
        self._env = lmdb.open(
            str(path),
            map_size=_MAP_BYTES,
            mode=0o700,  # for the folder; LMDB drops the execute bits for the files
            max_dbs=len(names),
            max_readers=_MAX_READERS,
            max_spare_txns=4,
            sync=durable,
        )
        try:
            self._env.reader_check()
            with self._env.begin(write=True) as txn:
                found = txn.get(_FORMAT_KEY)
                if found not in (None, _FORMAT):
                    raise ConfigError(
                        f"The tenants at {path.parent} have format {found!r}; this Penstock reads format {_FORMAT!r}. "
                        "Upgrade Penstock, or choose another tenants_path.",
                        param="tenants_path",
                    )
                if found is None:
                    txn.put(_FORMAT_KEY, _FORMAT)
                self.databases = {name: self._env.open_db(name, txn) for name in names}
        except BaseException:
            self._env.close()
            raise

    def reading(self) -> "AbstractContextManager[Transaction]":
        return self._env.begin()

    def writing(self) -> "AbstractContextManager[Transaction]":
        """Holds the lock of all processes until the block ends; undone when it raises."""
        return self._env.begin(write=True)

    def sync(self) -> None:
        self._env.sync(True)

    def close(self) -> None:
        self._env.close()


class SyncThread:
    """Hands an environment to the disk every SYNC_SECONDS in which it was written."""

    def __init__(self, environment: Environment) -> None:
        self.written = False
        self._env = environment
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="penstock-tenants-sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(SYNC_SECONDS):
            self._sync()

    def _sync(self) -> None:
        if not self.written:
            return
        self.written = False
        try:
            self._env.sync()
        except lmdb.Error as error:
            log.warning("The tenants' counters could not be handed to the disk: %s", error)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._sync()


def open_environments(
    path: Path, keys: tuple[bytes, ...], counters: tuple[bytes, ...]
) -> tuple[Environment, Environment]:
    """Raises ConfigError when the folder cannot be used."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(path):
            _check_after_boot(path)
            table = Environment(path / "keys", keys, durable=True)
            try:
                return table, Environment(path / "counters", counters, durable=False)
            except BaseException:
                table.close()
                raise
    except (lmdb.Error, OSError) as error:
        raise ConfigError(
            f"The tenants' folder {path} cannot be used ({error}); make it a writable folder, choose another "
            "tenants_path, or serve without tenants and accounts (tenants = false).",
            param="tenants_path",
        ) from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process opens at a time, so that none sets aside what another has just opened."""
    with open(path / "opening.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_after_boot(path: Path) -> None:
    """LMDB trusts its file, so the counters' is read once without it where the last boot may have torn it."""
    boot, noted, data = boot_name(), path / "boot", path / "counters" / "data.mdb"
    if boot and noted.exists() and noted.read_text() == boot:
        return
    if data.exists():
        from lmdb.verify import verify

        findings: list[str] = verify(str(data), subdir=False)  # type: ignore[no-untyped-call]  # has no stub
        if findings:
            aside = path / f"counters-damaged-{time.time_ns()}"
            data.parent.rename(aside)
            log.error(
                "The tenants' counters were damaged when the machine went down (%s); they begin anew, and what is left of "
                "the accounts is in %s. Keys and limits are not touched.",
                findings[0],
                aside,
            )
    noted.write_text(boot)
