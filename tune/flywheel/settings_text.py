"""A settings file's text with something laid over it: comments and order stay, where they can."""

import tomllib
from collections.abc import Mapping
from typing import Any

from ..levers.settings_file import toml
from .settings import laid_over

_NOTE = "Of `penstock flywheel`; `penstock flywheel --back` undoes it."


def with_changes(text: str, changes: Mapping[str, Any]) -> str:
    """`text`: valid TOML. Where it says something about the same already, it is written anew, without its comments."""
    present = tomllib.loads(text)
    wanted = laid_over(present, changes)
    values = {name: value for name, value in changes.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in changes.items() if isinstance(value, Mapping)}
    parts = [*([toml(values, _NOTE)] if values else []), text.rstrip("\n") + "\n"]
    if tables:
        parts.append(toml(tables, _NOTE))
    whole = "\n".join(part for part in parts if part.strip())
    try:
        if tomllib.loads(whole) == wanted:
            return whole
    except tomllib.TOMLDecodeError:  # it has a value or a table of the same name
        pass
    return toml(wanted, f"{_NOTE}\nWritten anew: the file had settings of the same names.")
