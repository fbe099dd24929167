"""A clock that tests set, and caches that are closed whatever happens."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.cache import CompletionCache


class Clock:
    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "completions.lmdb"


@pytest.fixture
def open_cache(path: Path) -> Iterator[Callable[..., CompletionCache]]:
    opened = []

    def open_one(at: Path = path, **settings: object) -> CompletionCache:
        opened.append(CompletionCache(at, **settings))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()
