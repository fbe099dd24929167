"""Which engines the commands make that time models, and whether one was the only model in memory."""

import gc
from pathlib import Path

import pytest

from penstock import cli_engine_runs, scheduler
from penstock.scheduler import Engine, EngineConfig


def noted_engines(monkeypatch: pytest.MonkeyPatch, *, lonely: bool) -> list[str]:
    """The names of the folders of the engines made from now on.

    `lonely`: their models count as large, and none may find another one in memory beside those there are now.
    """
    before, made = _models_in_memory(), list[str]()
    if lonely:
        monkeypatch.setattr(cli_engine_runs, "TOGETHER_BYTES", 0)

    class Noted(Engine):
        def __init__(self, config: EngineConfig) -> None:
            assert not lonely or _models_in_memory() <= before, (
                "another model is in memory beside the one that is timed"
            )
            super().__init__(config)
            made.append(Path(config.model).name)

    monkeypatch.setattr(scheduler, "Engine", Noted)
    return made


def _models_in_memory() -> int:
    return sum(type(part).__name__ == "LlamaForCausalLM" for part in gc.get_objects())
