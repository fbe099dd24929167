"""A cache, or a part of it, as a file of JSON lines, and back into a cache. Knows no line's content."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from ..errors import ConfigError, PenstockError
from .environment import Transaction
from .opened import Entry, OpenedCache
from .operations import BATCH
from .private_file import private_file
from .selection import Selection
from .transfer import FORMAT, VERSION, Header, entry_of, line_of


class Imported(msgspec.Struct):
    """What became of a file's entries.

    Attributes:
        stored: new here, or newer than what was here.
        present: here already, as new or newer.
        over: their time to live has ended.
        bad: lines that are no entries, left out.
        unindexed: of those stored, the ones with an embedding of another length than this cache's index holds:
            found by their key, not by meaning.
    """

    stored: int = 0
    present: int = 0
    over: int = 0
    bad: int = 0
    unindexed: int = 0


def export(cache: OpenedCache, selection: Selection, file: Path) -> int:
    """Writes the selected entries, one a line; how many. Damaged entries are left out.

    What is there from begin to end is in the file, whole and once; what comes or goes meanwhile may or may not be
    (`OpenedCache.entries`). The file has its name only once it is complete. Raises ConfigError when it exists already
    or cannot be written.
    """
    if file.exists():
        raise ConfigError(f"{file} exists already; name another file, or remove it.", param="file")
    try:
        with private_file(file) as output:
            return _write(cache, selection, output)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}.", param="file") from error


def import_(cache: OpenedCache, file: Path, *, now: float, skip_bad: bool = False) -> Imported:
    """Stores the entries of an exported file; again is harmless, and of two versions the newer one stays.

    Nothing is evicted for it. Embeddings are the same to the byte; the codes by which they are found are made anew.

    Raises PenstockError at the first bad line (unless `skip_bad`; what stands before it is stored), and when the cache is
    at its cap; ConfigError when the file cannot be read or is no export.
    """
    done = Imported()
    try:
        with file.open("rb") as source:
            _check_header(file, source.readline())
            for batch in _read(file, source, done, skip_bad):
                _store(cache, batch, now, done)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.", param="file") from error
    return done


def _write(cache: OpenedCache, selection: Selection, output: BinaryIO) -> int:
    output.write(msgspec.json.encode(Header(FORMAT, VERSION)) + b"\n")
    count = 0
    for entry in cache.entries(selection.prefix, with_embeddings=True):
        line = line_of(entry) if selection.includes(entry) else None
        if line is not None:
            output.write(line + b"\n")
            count += 1
    return count


def _check_header(file: Path, line: bytes) -> None:
    try:
        header = msgspec.json.decode(line, type=Header)
    except msgspec.DecodeError:
        header = None
    if header is None or header.format != FORMAT:
        raise ConfigError(
            f"{file} is no export: its first line must name the format {FORMAT!r}. Make one with `penstock cache export`.",
            param="file",
        )
    if header.version != VERSION:
        raise ConfigError(
            f"{file} has version {header.version}; this Penstock reads version {VERSION}. Upgrade it, or export again.",
            param="file",
        )


def _read(file: Path, source: BinaryIO, done: Imported, skip_bad: bool) -> Iterator[list[Entry]]:
    """Batches of entries; what stands before a bad line comes before the error."""
    batch: list[Entry] = []
    for number, line in enumerate(source, 2):
        try:
            batch.append(entry_of(line))
        except ValueError as error:
            if skip_bad:
                done.bad += 1
                continue
            yield batch
            raise PenstockError(
                f"{file}, line {number}: {error}. Mend it and import again, or leave bad lines out with --skip-bad."
            ) from error
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def _store(cache: OpenedCache, batch: list[Entry], now: float, done: Imported) -> None:
    valid = [entry for entry in batch if entry.record.expires > now]
    done.over += len(batch) - len(valid)
    if cache.index is None:
        first = next((entry.embedding for entry in valid if entry.embedding is not None), None)
        if first is not None:
            cache.open_index(len(first.vector))

    def store(txn: Transaction) -> list[Entry]:
        used = cache.environment.used_bytes(txn)
        if used > cache.max_bytes:
            raise PenstockError(
                f"The cache holds {used} bytes of at most {cache.max_bytes}; {done.stored} entries were imported so far. "
                "Raise --cache-max-bytes, here and for the servers, and import again."
            )
        stored = []
        for entry in valid:
            old = cache.ledger.record(txn, entry.place)
            if old is not None and old.created >= entry.record.created:
                continue
            cache.ledger.put(txn, entry.place, entry.record, entry.body)
            if _fits(cache, entry):
                _index(cache, entry)
            stored.append(entry)
        return stored

    stored = cache.change(store)
    done.stored += len(stored)
    done.present += len(valid) - len(stored)
    done.unindexed += sum(entry.embedding is not None and not _fits(cache, entry) for entry in stored)


def _fits(cache: OpenedCache, entry: Entry) -> bool:
    index = cache.index
    return index is not None and entry.embedding is not None and len(entry.embedding.vector) == index.dims


def _index(cache: OpenedCache, entry: Entry) -> None:
    question = entry.question
    assert cache.index is not None and entry.embedding is not None and question is not None
    # The unit vector that these bytes stand for is rounded to the very same bytes again.
    unit = cache.index.unit(entry.embedding.vector.astype(np.float32) * entry.embedding.scale)
    cache.ledger.index_changes.setdefault(question.partition, {})[entry.place] = unit
