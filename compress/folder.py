"""Folders that appear whole or not at all, and what a long job keeps beside them so that it can go on.

Knows nothing of what is in them.
"""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import CompressError, PenstockError

log = logging.getLogger(__name__)

# The one folder that a model's folder may hold.
TEMPLATES = "additional_chat_templates"


@contextmanager
def new_folder(target: Path, *, force: bool = False, expected_bytes: int = 0) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends, and is gone when it raises.

    Args:
        target: what it is to be; its parents are made.
        force: whether it may take the place of a folder with something in it.
        expected_bytes: how much will be written, as far as that is known.

    Raises CompressError where `target` is taken, cannot be written, or the disk is too small, then or on the way.
    """
    check_target(target, force=force)
    staging = _beside(target, "partial")
    try:
        _remove(staging)
        staging.mkdir(parents=True)
        free = shutil.disk_usage(staging).free
        if free < expected_bytes:
            raise CompressError(
                f"{target} needs about {_megabytes(expected_bytes)}, and its disk has {_megabytes(free)} left; "
                "free some, or write to another disk."
            )
        yield staging
        _let_others_read(staging)
        _take_place(staging, target)
    except BaseException as error:
        _remove(staging)
        if is_disk_full(error):
            raise CompressError(
                f"The disk of {target} is full; nothing was written. Free some space, or write to another disk."
            ) from error
        if isinstance(error, OSError):
            raise CompressError(f"{target} cannot be written: {error.strerror or error}.") from error
        raise


def check_target(target: Path, *, force: bool, sources: Sequence[str | Path] = ()) -> None:
    """Refuses, before any work is done for it, a target that will not be written.

    Args:
        sources: models it is made from; those that are folders must not be replaced.

    Raises CompressError.
    """
    if target.exists() and not target.is_dir():
        raise CompressError(f"{target} is a file; name a folder that is not there yet.", param="output")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise CompressError(
            f"{target} has something in it; name another folder, or give --force to replace it.",
            param="output",
        )
    if target.is_dir() and any(path.is_dir() and path.name != TEMPLATES for path in target.iterdir()):
        raise CompressError(
            f"{target} has folders in it, as nothing has that is written here; name another folder.",
            param="output",
        )
    for source in (Path(source).expanduser() for source in sources):
        if source.is_dir() and _overlap(target.resolve(), source.resolve()):
            raise CompressError(
                f"{target} would take the place of {source}, which it is made from; name another folder.",
                param="output",
            )
    check_writable(target.absolute().parent, target)


def check_writable(folder: Path, target: Path) -> None:
    """Refuses a `target` in `folder` where that, or the nearest above it that is there, takes no files.

    Raises CompressError.
    """
    found = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
        raise CompressError(f"{target} cannot be made: {found} may not be written to.", param="output")


def is_disk_full(error: BaseException) -> bool:
    """A disk, or what a user may have of it."""
    return _system_error(error) in (errno.ENOSPC, errno.EDQUOT)


def _system_error(error: BaseException) -> int | None:
    """Its number; also of libraries that pass the system's error on as text only, as safetensors does."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told and not isinstance(error, PenstockError) else None


class WorkFolder:
    """What a job has done so far, in `.NAME.work` beside its target, until `done`.

    The same job finds it again; another job for the same target starts afresh. One process at a time.

    Args:
        target: the folder that the job is going to write.
        job: what makes it the same job: inputs, by their fingerprint, and settings.

    Raises CompressError where another process works there, or it cannot be written.
    """

    def __init__(self, target: Path, job: Mapping[str, Any]) -> None:
        self.path = work_path(target)
        description = json.dumps(job, sort_keys=True)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)  # what is learnt from may be somebody's own
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._lock)
                raise CompressError(f"Another process is at work on {target}; wait for it.") from error
            kept = self.path / "job.json"
            self.resumed = kept.is_file() and kept.read_text() == description
            if not self.resumed:
                if kept.is_file():
                    log.warning("%s holds the work of other settings or texts, which is given up", self.path)
                for old in self.path.iterdir():
                    if old.name != "lock":
                        _remove(old)
                kept.write_text(description)
        except OSError as error:
            raise CompressError(f"{self.path} cannot be written: {error.strerror}.") from error

    def close(self) -> None:
        """Lets another process go on from here. Where nothing was done yet, a mistake was found in time: nothing stays."""
        with suppress(OSError):
            others = [path for path in self.path.iterdir() if path.name not in ("lock", "job.json")]
            if not any(path.is_dir() or path.stat().st_size for path in others):
                _remove(self.path)
        os.close(self._lock)

    def done(self) -> None:
        """The target is written: nothing is left to go on with."""
        _remove(self.path)
        self.close()


def work_path(target: Path) -> Path:
    """Where the work on `target` is kept."""
    return _beside(target, "work")


@contextmanager
def work_folder(target: Path, job: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """A WorkFolder that is done when the block ends, and there to go on from when it raises.

    Raises CompressError as WorkFolder does, and where the block meets a file that cannot be written or read.
    """
    work = WorkFolder(target, job)
    try:
        yield work
    except BaseException as error:
        work.close()
        if is_disk_full(error):
            raise CompressError(
                f"The disk of {target} is full; free some space, and run this again to go on."
            ) from error
        number = None if isinstance(error, ConnectionError) else _system_error(error)
        if number is not None:
            where = getattr(error, "filename", None) or work.path
            raise CompressError(
                f"{where} cannot be written or read: {os.strerror(number)}. Mend that, and run this again to go on."
            ) from error
        raise
    work.done()


def _let_others_read(folder: Path) -> None:
    """As the user's umask has it: safetensors writes files that only their owner may read."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _take_place(staging: Path, target: Path) -> None:
    if not target.exists():
        os.replace(staging, target)
        return
    old = _beside(target, "old")
    _remove(old)
    os.replace(target, old)
    try:
        os.replace(staging, target)
    except BaseException:
        os.replace(old, target)
        raise
    _remove(old)


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _beside(target: Path, kind: str) -> Path:
    target = target.absolute()
    return target.with_name(f".{target.name}.{kind}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
