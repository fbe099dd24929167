"""What tensors the safetensors files of a folder hold, by their headers alone: where, of which type and shape."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelLoadError
from .json_file import read_json_object

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`dtype` in safetensors' words: "I8", "I32", "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """By name. Raises ModelLoadError naming a file that is missing or cut short."""
    from safetensors import SafetensorError, safe_open

    index = read_json_object(folder / INDEX).get("weight_map", {})
    found = {}
    for file in sorted({folder / name for name in index.values()} or {folder / WHOLE}):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dict
                    part = opened.get_slice(name)
                    found[name] = StoredTensor(file, part.get_dtype(), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(
                f"{file} cannot be read ({error}); download or export the model again."
            ) from error
    if lacking := sorted(set(index) - set(found)):
        raise ModelLoadError(
            f"{folder / index[lacking[0]]} lacks {lacking[0]}, which {INDEX} says it has; "
            "download or export the model again."
        )
    return found
