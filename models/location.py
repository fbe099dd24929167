"""Where a model's files are: a built-in one, a local folder, or a snapshot of a hub repository."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelLoadError

# By the names that they are asked for by, and served under.
BUILTIN_FOLDERS = {name: Path(__file__).resolve().parent / name for name in ("builtin", "builtin-large")}

WEIGHT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
TOKENIZER_FILES = ("tokenizer*", "*.jinja", "special_tokens_map.json", "vocab*", "merges.txt", "*config.json")


def resolve_model(model: str, *, files: Sequence[str] = WEIGHT_FILES) -> Path:
    """The folder that holds `model`; downloads a hub id's `files` (patterns) when they are not here yet.

    Raises ModelLoadError when there is no such folder or repository, or it cannot be reached.
    """
    return find_model(model) or _download(model, files)


def find_model(model: str) -> Path | None:
    """Its folder when it is on this machine, None for what may be a hub id. Touches no network.

    Raises ModelLoadError for anything else: a mistyped path should not cost a model's loading time.
    """
    if (own := BUILTIN_FOLDERS.get(model)) is not None:
        if not (own / "config.json").is_file():
            raise ModelLoadError(
                f"The model {model!r} is missing from {own}; reinstall penstock.", param="model"
            )
        return own
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if _may_be_hub_id(model):
        return None
    raise ModelLoadError(
        f"model is {model!r}: no such folder. Give 'builtin', 'builtin-large', a folder with config.json "
        "and *.safetensors, or a hub id such as 'Qwen/Qwen2.5-0.5B-Instruct'.",
        param="model",
    )


def model_name(model: str) -> str:
    """The name a model is served under when none is given: a folder's own name, else the id as written."""
    folder = Path(model).expanduser()
    return folder.resolve().name if model not in BUILTIN_FOLDERS and folder.is_dir() else model


def _may_be_hub_id(model: str) -> bool:
    owner, slash, name = model.partition("/")
    return bool(slash and owner and name) and "/" not in name and owner[0] not in ".~"


def _download(model: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, allow_patterns=list(files)))
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"model {model!r} is neither a folder here nor in the local hub cache, and the hub cannot be "
            "reached. Check the network, or give a local folder.",
            param="model",
        ) from error
    except GatedRepoError as error:
        raise ModelLoadError(
            f"model {model!r} is gated: ask for access at https://huggingface.co/{model}, then log in with `hf auth login`.",
            param="model",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"model {model!r} is neither a folder here nor a repository of the hub that may be read. Check the id, or log "
            "in with `hf auth login` where it is private.",
            param="model",
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelLoadError(
            f"model {model!r} cannot be downloaded from the hub ({reason}). Check the id, the network and "
            "the disk.",
            param="model",
        ) from error
