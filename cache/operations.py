"""Purge and backup of a cache that servers have open. Knows no command line."""

from itertools import islice
from pathlib import Path

import msgspec

from ..errors import ConfigError
from .environment import Transaction
from .opened import Entry, OpenedCache
from .private_file import private_file
from .selection import Selection

# A transaction holds the write lock, for which servers' stores wait: so many entries are some milliseconds.
BATCH = 256


class Purged(msgspec.Struct, frozen=True):
    """`num_bytes`: of the entries' bodies. The pages they lie on are used again; the file stays as long as it is.
    `labels`: rows of what near hits taught, gone where all of a tenant was selected."""

    entries: int
    num_bytes: int
    labels: int


def purge(cache: OpenedCache, selection: Selection, *, dry_run: bool = False) -> Purged:
    """Removes the selected entries, from the index in the same transactions. Servers' next lookups miss them.

    An entry that was replaced while this ran stays: it is another one. `dry_run` only counts.
    """
    entries = num_bytes = 0
    selected = (entry for entry in cache.entries(selection.prefix) if selection.includes(entry))
    while batch := list(islice(selected, BATCH)):
        removed = batch if dry_run else _remove(cache, batch)
        entries += len(removed)
        num_bytes += sum(len(entry.body) for entry in removed)
    labels = 0
    if not dry_run and selection.is_whole:
        labels = cache.change(lambda txn: cache.label_log.forget(txn, selection.prefix))
    return Purged(entries, num_bytes, labels)


def backup(cache: OpenedCache, folder: Path) -> int:
    """Copies what is committed now into `folder`, without freed pages; the length of the copy in bytes.

    Raises ConfigError when `folder` has something in it, or cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty; a backup needs a folder of its own: name another, or empty it.",
                param="folder",
            )
        with private_file(folder / "data.mdb") as copy:
            cache.environment.copy(copy)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.", param="folder") from error
    return (folder / "data.mdb").stat().st_size


def _remove(cache: OpenedCache, batch: list[Entry]) -> list[Entry]:
    ledger = cache.ledger

    def remove(txn: Transaction) -> list[Entry]:
        removed = []
        for entry in batch:
            record = ledger.record(txn, entry.place)
            if record is not None and record.created == entry.record.created:
                ledger.remove(txn, entry.place)
                removed.append(entry)
        return removed

    return cache.change(remove)
