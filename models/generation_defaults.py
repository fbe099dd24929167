"""How a model wants to be sampled when nobody says otherwise: what its folder's generation_config.json states."""

import json
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ModelLoadError

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class GenerationDefaults(msgspec.Struct, frozen=True):
    """Attributes:
    sampling: values of `SamplingParams` fields that a request leaves open.
    max_tokens: most tokens of a chat answer, None for as many as fit.
    """

    sampling: dict[str, Any] = {}
    max_tokens: int | None = None

    @classmethod
    def load(cls, folder: Path) -> "GenerationDefaults":
        """Nothing stated is nothing changed. `do_sample: false` means greedy, whatever stands beside it.

        Raises ModelLoadError when the file is no JSON object.
        """
        file = folder / "generation_config.json"
        if not file.is_file():
            return cls()
        try:
            stated = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelLoadError(f"{file} is not valid JSON: {error}.") from error
        if not isinstance(stated, dict):
            raise ModelLoadError(f"{file} holds {type(stated).__name__}; it must be a JSON object.")
        if stated.get("do_sample") is False:
            sampling: dict[str, Any] = {"temperature": 0.0}
        else:
            sampling = {name: stated[name] for name in SAMPLING if stated.get(name) is not None}
        return cls(sampling, stated.get("max_new_tokens"))
