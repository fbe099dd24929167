"""How an encoder's token vectors become one: what sentence-transformers' files beside the weights say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..errors import ModelLoadError
from .json_file import read_json_object

KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
SWITCH = "pooling_mode_"


@dataclass(frozen=True, slots=True)
class Pooling:
    kind: Literal["mean", "cls"]

    @classmethod
    def of(cls, folder: Path) -> "Pooling":
        """The mean where the folder says nothing. Raises ModelLoadError for what is not computed here."""
        where = folder / "1_Pooling"
        for module in _modules(folder):
            kind = str(module.get("type")).rpartition(".")[2]
            if kind not in KNOWN_MODULES:
                raise ModelLoadError(
                    f"{folder}/modules.json has a module {kind!r}; only {', '.join(KNOWN_MODULES)} are computed.",
                    param="embedding_model",
                )
            if kind == "Pooling":
                where = folder / str(module.get("path"))
        config = read_json_object(where / "config.json")
        chosen = [
            name.removeprefix(SWITCH) for name, on in config.items() if name.startswith(SWITCH) and on is True
        ]
        if chosen in ([], ["mean_tokens"]):
            return cls("mean")
        if chosen == ["cls_token"]:
            return cls("cls")
        raise ModelLoadError(
            f"{where}/config.json pools by {', '.join(chosen)}; only the mean and the first token are computed.",
            param="embedding_model",
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        """[n, H] -> [H]"""
        return tokens.mean(dim=0) if self.kind == "mean" else tokens[0]


def _modules(folder: Path) -> list[dict[str, Any]]:
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{file} is not valid JSON: {error}.") from error
    return [module for module in content if isinstance(module, dict)]
