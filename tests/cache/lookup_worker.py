"""A process that keeps a cache open, and says what it finds there.

    python lookup_worker.py PATH

Stores 300 entries of acme and of bolt. Then says, for each line it reads, how many of acme it finds by key and by meaning,
and how many of bolt.
"""

import sys
from pathlib import Path

from cache_worker import make_key
from neighbour_worker import make_partition, store
from semantic_worker import DIMS, make_embedding

from penstock.cache import CompletionCache

COUNT = 300


def main(path: str) -> None:
    cache = CompletionCache(Path(path))
    cache.open_index(DIMS)
    for number in range(COUNT):
        store(cache, number)
        store(cache, number, "bolt")
    cache.flush()
    for _ in sys.stdin:
        print(
            *(len(found(cache, tenant)) for tenant in ("acme", "bolt") for found in (by_key, by_meaning)),
            flush=True,
        )


def by_key(cache: CompletionCache, tenant: str) -> list[int]:
    return [number for number in range(COUNT) if cache.lookup(make_key(number, tenant)) is not None]


def by_meaning(cache: CompletionCache, tenant: str) -> list[int]:
    nearest = [cache.nearest(make_partition(tenant), make_embedding(number)) for number in range(COUNT)]
    return [number for number, found in enumerate(nearest) if found and found[0].similarity > 0.999]


if __name__ == "__main__":
    main(*sys.argv[1:])
