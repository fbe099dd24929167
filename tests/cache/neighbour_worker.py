"""Completions with questions and embeddings that are a pure function of their number, and a process that stores them.

    python neighbour_worker.py PATH TENANT FIRST MAX_BYTES

Stores entries from FIRST on until it is killed, and prints a number each time all below it is committed.
"""

import sys
from pathlib import Path

from cache_worker import make_completion, make_key
from semantic_worker import DIMS, make_embedding

from penstock.cache import CompletionCache, Question, family_key, partition_key


def make_partition(tenant: str = "acme", **changes: object) -> bytes:
    scope: dict = {"namespace": "", "model": "model", "fingerprint": "f00d", "embedder": "e", "request": {}}
    return partition_key(tenant=tenant, **(scope | changes))


def make_question(number: int, tenant: str = "acme") -> Question:
    family = family_key(tenant=tenant, model="model", fingerprint="f00d", embedder="e")
    return Question(make_partition(tenant), family, f"question {number}", "before ", " after")


def store(cache: CompletionCache, number: int, tenant: str = "acme", **settings: object) -> None:
    asked = {"question": make_question(number, tenant), "embedding": make_embedding(number)}
    cache.store(make_key(number, tenant), make_completion(number), **asked, **settings)


def main(path: str, tenant: str, first: str, max_bytes: str) -> None:
    cache = CompletionCache(Path(path), max_bytes=int(max_bytes))
    cache.open_index(DIMS)
    for number in range(int(first), 1 << 30):
        store(cache, number, tenant)
        if number % 10 == 9:
            cache.flush()
            print(number + 1, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
