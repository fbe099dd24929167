"""The settings file changed, and put back: whole or not at all, with what it was beside it.

FILE            as it is served from the next start on
FILE.before     as it was before the switch
FILE.switched   as the switch wrote it: what differs from that was changed since, and would be lost by going back
"""

import difflib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...config import is_secret
from ...errors import ConfigError, PenstockError
from .settings_text import with_changes


def switch(file: Path, changes: Mapping[str, Any], check: Callable[[Path], object]) -> Path:
    """The backup.

    Args:
        check: raises PenstockError for a settings file that could not be served; then nothing has changed.

    Raises ConfigError where it was switched before, or cannot be written.
    """
    file = file.resolve()
    before, switched = _beside(file)
    if before.exists():
        raise ConfigError(
            f"{file} was switched before, and {before} is how it was. Go back with --back first; or, to keep how it is now, "
            f"remove {before.name} and {switched.name}.",
            param="switch",
        )
    try:
        text = _read(file)
        changed = with_changes(text, changes)
        mode = file.stat().st_mode & 0o777
        _write(switched, changed, mode)
        try:
            check(switched)
        except PenstockError:
            switched.unlink()
            raise
        _write(before, text, mode)
        _write(file, changed, mode)
    except OSError as error:
        raise ConfigError(f"{file} cannot be switched: {error.strerror or error}.", param="config") from error
    return before


def back(file: Path, *, force: bool) -> list[str]:
    """Lines changed since the switch, which are lost; none without `force`.

    Raises ConfigError where there is nothing to go back to, and where something would be lost, saying what.
    """
    file = file.resolve()
    before, switched = _beside(file)
    try:
        old, written = _read(before), _read(switched)
        now = _read(file)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.filename} is not there: `penstock flywheel` did not switch {file}, or it is put back already.",
            param="back",
        ) from error
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}.", param="back") from error
    # Where the switch was cut short, the file is as it was.
    lost = [] if now == old else _changed_lines(written, now)
    if lost and not force:
        listed = "\n".join(f"  {line}" for line in lost)
        raise ConfigError(
            f"{file} was changed since the switch, and going back loses this:\n{listed}\nNote it, and give --force.",
            param="back",
        )
    try:
        _write(file, old, file.stat().st_mode & 0o777)
        before.unlink()
        switched.unlink()
    except OSError as error:
        raise ConfigError(f"{file} cannot be put back: {error.strerror or error}.", param="back") from error
    return lost


def _beside(file: Path) -> tuple[Path, Path]:
    return file.with_name(f"{file.name}.before"), file.with_name(f"{file.name}.switched")


def _changed_lines(written: str, now: str) -> list[str]:
    diff = list(difflib.unified_diff(written.splitlines(), now.splitlines(), n=0, lineterm=""))
    return [_shown(line) for line in diff[2:] if not line.startswith("@@")]


def _shown(line: str) -> str:
    """Without what may be a key: by its name, in a list or a table, or as a part of one that goes over several lines."""
    name, equals, value = line.partition("=")
    if not equals:
        return line if line[1:].lstrip().startswith("[") else f"{line[:1]} (not shown)"
    hidden = is_secret(name[1:].strip()) or value.lstrip()[:1] in ("[", "{")
    return f"{name}{equals} (not shown)" if hidden else line


def _read(file: Path) -> str:
    """With the line ends that it has."""
    return file.read_bytes().decode()


def _write(file: Path, text: str, mode: int) -> None:
    """On disk when it returns. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as part:
            part.write(text.encode())
            part.flush()
            os.fsync(part.fileno())
        os.chmod(name, mode)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
