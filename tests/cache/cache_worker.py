"""Entries that are a pure function of (tenant, number), and a process that writes them.

    python cache_worker.py PATH TENANT FIRST COUNT [BATCH]

Stores entries FIRST..FIRST+COUNT-1 and prints a number each time flush() has acknowledged all below it.
"""

import sys
from pathlib import Path

from penstock.cache import CachedChoice, CachedCompletion, CacheKey, CompletionCache, completion_key


def make_key(number: int, tenant: str = "acme", namespace: str = "") -> CacheKey:
    return completion_key(
        tenant=tenant,
        namespace=namespace,
        model="model",
        fingerprint="f00d",
        request={"messages": [{"role": "user", "content": f"question {number}"}], "temperature": 0.0},
    )


def make_completion(number: int, size: int = 600) -> CachedCompletion:
    """Says its number in every part, so that a torn or mixed-up entry cannot look right."""
    text = f"answer {number} " * (size // 10)
    tokens = [number + offset for offset in range(len(text) // 4)]
    return CachedCompletion([CachedChoice(text, tokens, "stop", None, None)], number, number / 8)


def main(path: str, tenant: str, first: str, count: str, batch: str = "50") -> None:
    cache = CompletionCache(Path(path))
    for number in range(int(first), int(first) + int(count)):
        cache.store(make_key(number, tenant), make_completion(number))
        if (number + 1) % int(batch) == 0:
            cache.flush()
            print(number + 1, flush=True)
    cache.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
