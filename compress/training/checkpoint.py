"""What a job goes on from, everything of training for one, in one file that is whole or the one before."""

import os
from pathlib import Path
from typing import Any

import torch

from ...errors import CompressError
from ..folder import is_disk_full


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Raises CompressError where it cannot be written; the checkpoint before it stays."""
    new = file.with_suffix(".new")
    try:
        with new.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, file)
    except (OSError, RuntimeError) as error:  # torch turns a failing write into a RuntimeError of its own
        cause = error if isinstance(error, OSError) else _cause(error)
        new.unlink(missing_ok=True)
        if cause is None:
            raise
        reason = "the disk is full" if is_disk_full(cause) else cause.strerror or str(cause)
        stays = " The one before it stays." if file.exists() else ""
        raise CompressError(
            f"{file} cannot be written: {reason}.{stays} Make room, and run the same command again."
        ) from error


def load_checkpoint(file: Path) -> dict[str, Any] | None:
    """None where there is none yet. Raises CompressError where it cannot be read."""
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files raise whatever pickle and zip choose
        raise CompressError(
            f"{file} cannot be read ({type(error).__name__}); remove {file.parent} to start afresh."
        ) from error
    return state


def _cause(error: BaseException) -> OSError | None:
    linked = error.__cause__ or error.__context__
    while linked is not None and not isinstance(linked, OSError):
        linked = linked.__cause__ or linked.__context__
    return linked
