"""Where a model's files are: the built-in one, a local folder, or a hub id."""

from pathlib import Path

from ..errors import ModelLoadError

BUILTIN = "builtin"
BUILTIN_PATH = Path(__file__).parent / "builtin"


def resolve_model(model: str) -> Path:
    if model == BUILTIN:
        return BUILTIN_PATH
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    raise ModelLoadError(f"{model} is no folder")
