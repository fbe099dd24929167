"""One way to read the JSON objects of a model's folder."""

import json
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in `file`; an empty one when there is no such file.

    Raises ModelLoadError when the file is no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file} holds {type(content).__name__}; it must be a JSON object.")
    return content
