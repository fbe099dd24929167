"""Embeddings that are a pure function of their number, and a process that adds them.

    python semantic_worker.py PATH PARTITION FIRST COUNT [BATCH]

Adds entries FIRST..FIRST+COUNT-1 and prints a number each time all below it is committed.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from penstock.cache.environment import CacheEnvironment
from penstock.cache.semantic import Changes, SemanticIndex

DIMS = 256


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_embedding(number: int, dims: int = DIMS) -> np.ndarray:
    return unit(np.random.default_rng(number).standard_normal(dims))


def make_key(number: int) -> bytes:
    return b"key %d" % number


class WrittenIndex(SemanticIndex):
    """An index whose changes are gathered and committed by `flush`, with a larger map where that is needed."""

    def __init__(self, environment: CacheEnvironment, dims: int = DIMS, **settings: int) -> None:
        super().__init__(environment, dims, **settings)
        self.environment = environment
        self._gathered: dict[bytes, dict[bytes, np.ndarray | None]] = {}

    def add(self, partition: bytes, key: bytes, embedding: np.ndarray) -> None:
        self._gathered.setdefault(partition, {})[key] = self.unit(embedding)

    def remove(self, partition: bytes, key: bytes) -> None:
        self._gathered.setdefault(partition, {})[key] = None

    def flush(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for partition in self._with_room(lambda: self._commit(gathered)):
            self._with_room(functools.partial(self.train, partition))

    def _commit(self, gathered: Changes) -> list[bytes]:
        with self.environment.write() as txn:
            return self.change(txn, gathered)

    def _with_room(self, write: Callable[[], Any]) -> Any:
        while True:
            try:
                return write()
            except lmdb.MapFullError:
                if not self.environment.grow():
                    raise


def main(path: str, partition: str, first: str, count: str, batch: str = "50") -> None:
    environment = CacheEnvironment(Path(path), max_bytes=1 << 28)
    index = WrittenIndex(environment)
    for number in range(int(first), int(first) + int(count)):
        index.add(partition.encode(), make_key(number), make_embedding(number))
        if (number + 1) % int(batch) == 0:
            index.flush()
            print(number + 1, flush=True)
    index.flush()
    environment.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
