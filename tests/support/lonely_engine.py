"""An engine that must be the only model in memory, for the commands that time one model after the other."""

import gc
from pathlib import Path

import pytest

from penstock import scheduler
from penstock.scheduler import Engine, EngineConfig


def only_lonely_engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders of the engines made from now on, which find no other model beside those there are now."""
    before, made = _models_in_memory(), list[str]()

    class Lonely(Engine):
        def __init__(self, config: EngineConfig) -> None:
            assert _models_in_memory() <= before, "another model is in memory beside the one that is timed"
            super().__init__(config)
            made.append(Path(config.model).name)

    monkeypatch.setattr(scheduler, "Engine", Lonely)
    return made


def _models_in_memory() -> int:
    return sum(type(part).__name__ == "LlamaForCausalLM" for part in gc.get_objects())
