"""A small model and a large one, each in an engine, and a copy of the large one that plays a small tier."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from penstock.scheduler import EngineConfig, EngineProcess


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cascade") / "little", seed=7, context=128)


@pytest.fixture(scope="session")
def small_address(small_model: Path) -> Iterator[str]:
    engine = EngineProcess(EngineConfig(model=str(small_model), threads=1))
    engine.start()
    yield engine.address
    engine.stop()
