"""What a measurement has found so far, kept so that it can go on: a JSON value by what it is of, in a file of lines.

Knows nothing of what is measured.
"""

import json
import os
from pathlib import Path
from typing import Any


class Findings:
    """Args:
    file: made where it is not there; None: what is found lasts as long as this.

    Raises OSError where it cannot be read or written.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._found: dict[str, Any] = {}
        if file is not None and file.exists():
            self._read(file)

    def get(self, of: str) -> Any:
        """None where it was not found yet."""
        return self._found.get(of)

    def keep(self, of: str, value: Any) -> None:
        """`value`: what JSON has; a float comes back as the same float."""
        self._found[of] = value
        if self._file is None:
            return
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([of, value]) + "\n")

    def _read(self, file: Path) -> None:
        """A last line that was torn when the process was killed is forgotten, and overwritten."""
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(file, len(whole))
        self._found = dict(map(json.loads, whole.splitlines()))
