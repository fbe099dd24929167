"""One engine and one server for all tests of the proxy, on uvloop as in production."""

import inspect
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from running_server import RunningServer, running_server
from tiny_model import write_tiny_model

from penstock.scheduler import EngineConfig, EngineProcess

HERE = Path(__file__).parent


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], AbstractEventLoop]] | None:
    return {"uvloop": uvloop.new_event_loop}


def _on_the_one_loop(item: pytest.Item) -> None:
    if HERE in item.path.parents and inspect.iscoroutinefunction(getattr(item, "function", None)):
        item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Before the plugin asks which loop's factory the test is to have: asked later, each would get a loop, and servers, anew.
    _on_the_one_loop(metafunc.definition)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        _on_the_one_loop(item)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("proxy") / "tiny")


@pytest.fixture(scope="session")
def engine_address(model: Path) -> Iterator[str]:
    engine = EngineProcess(EngineConfig(model=str(model), threads=1, max_waiting=32))
    engine.start()
    yield engine.address
    engine.stop()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second model: other weights, and a shorter context."""
    return write_tiny_model(tmp_path_factory.mktemp("proxy") / "little", seed=7, context=128)


@pytest.fixture(scope="session")
def small_address(small_model: Path) -> Iterator[str]:
    engine = EngineProcess(EngineConfig(model=str(small_model), threads=1))
    engine.start()
    yield engine.address
    engine.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(
    engine_address: str, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningServer]:
    """With a cache, without a key."""
    cache_path = tmp_path_factory.mktemp("cache") / "completions"
    async with running_server(engine_address, model, cache_path=cache_path) as running:
        yield running
