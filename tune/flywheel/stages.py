"""What each stage of a long job found, kept as JSON until the job is done: a stage that is done is not done again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from ...errors import TuneError

T = TypeVar("T")


class Stages:
    """Args:
    folder: the job's; nobody else writes there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, name: str, type_: type[T], make: Callable[[], T]) -> T:
        """What was kept under `name`, or else what `make` returns. Raises TuneError where it cannot be kept."""
        file = self.folder / f"{name}.json"
        if file.is_file():
            return msgspec.json.decode(file.read_bytes(), type=type_)
        found = make()
        part = file.with_suffix(".part")
        try:
            part.write_bytes(msgspec.json.encode(found))
            os.replace(part, file)
        except OSError as error:
            raise TuneError(f"{file} cannot be written: {error.strerror}.", param="output") from error
        return found
