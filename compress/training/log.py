"""The record of a training run: one JSON object a line."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import CompressError


class TrainingLog:
    """Appends to `file`. Raises CompressError where that cannot be done, a full disk for one."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, **fields: Any) -> None:
        with self._telling(), self.file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(fields) + "\n")

    def forget_after(self, step: int) -> None:
        """What was written after the checkpoint of `step`, or only half, will be written again."""
        if not self.file.exists():
            return
        kept = []
        for line in self.file.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        new = self.file.with_suffix(".new")
        with self._telling():
            new.write_text("".join(kept), encoding="utf-8")
            os.replace(new, self.file)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CompressError(
                f"{self.file} cannot be written: {error.strerror}. Run the same command again, when it can be, to go on."
            ) from error
