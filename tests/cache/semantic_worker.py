"""Embeddings that are a pure function of their number, and a process that adds them.

    python semantic_worker.py PATH PARTITION FIRST COUNT [BATCH]

Adds entries FIRST..FIRST+COUNT-1 and prints a number each time flush() has acknowledged all below it.
"""

import sys
from pathlib import Path

import numpy as np

from penstock.cache.environment import CacheEnvironment
from penstock.cache.semantic import SemanticIndex

DIMS = 256


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_embedding(number: int, dims: int = DIMS) -> np.ndarray:
    return unit(np.random.default_rng(number).standard_normal(dims))


def make_key(number: int) -> bytes:
    return b"key %d" % number


def main(path: str, partition: str, first: str, count: str, batch: str = "50") -> None:
    environment = CacheEnvironment(Path(path), max_bytes=1 << 28)
    index = SemanticIndex(environment, DIMS)
    for number in range(int(first), int(first) + int(count)):
        index.add(partition.encode(), make_key(number), make_embedding(number))
        if (number + 1) % int(batch) == 0:
            index.flush()
            print(number + 1, flush=True)
    index.close()
    environment.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
