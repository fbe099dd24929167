"""How a model wants to be sampled when nobody says otherwise: what its folder's generation_config.json states."""

from pathlib import Path
from typing import Any

import msgspec

from .json_file import read_json_object

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
        stated = read_json_object(folder / "generation_config.json")
        if stated.get("do_sample") is False:
            sampling: dict[str, Any] = {"temperature": 0.0}
        else:
            sampling = {name: stated[name] for name in SAMPLING if stated.get(name) is not None}
        return cls(sampling, stated.get("max_new_tokens"))
