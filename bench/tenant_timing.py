"""Whether time tells one tenant what another was told: lookups that miss, of requests that a foreign tenant has and of such
that nobody has.

    python bench/tenant_timing.py

Interleaves both kinds in random order, in this process, by exact key and by meaning, and compares their times: medians, and
the share of random relabellings of the times whose medians differ as much (a permutation test; small shares would tell).
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from penstock.cache import (
    CachedChoice,
    CachedCompletion,
    CompletionCache,
    Question,
    completion_key,
    partition_key,
)

DIMS = 384
SCOPE = {"namespace": "", "model": "m", "fingerprint": "f"}
RELABELLINGS = 2000


def embedding_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(DIMS).astype(np.float32)


def request(number: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": f"question {number}"}], "temperature": 0}


def fill(cache: CompletionCache, entries: int) -> None:
    """As the tenant acme; bolt has as many of other questions."""
    cache.open_index(DIMS)
    for tenant, offset in (("acme", 0), ("bolt", 10 * entries)):
        partition = partition_key(tenant=tenant, **SCOPE, embedder="e", request={})
        for number in range(offset, offset + entries):
            key = completion_key(tenant=tenant, **SCOPE, request=request(number))
            completion = CachedCompletion(
                [CachedChoice("answer " * 40, [1] * 80, "stop", None, None)], 9, 0.5
            )
            question = Question(partition, bytes(24), f"question {number}", "", "")
            cache.store(key, completion, question=question, embedding=embedding_of(number))
            if number % 500 == 499:
                cache.flush()
    cache.flush()


def compare(name: str, look: Callable[[int], object], foreign: list[int], nobodys: list[int]) -> None:
    order = [(number, True) for number in foreign] + [(number, False) for number in nobodys]
    random.Random(0).shuffle(order)
    for number, _ in order[:200]:
        look(number)
    times: dict[bool, list[float]] = {True: [], False: []}
    for number, is_foreign in order:
        started = time.perf_counter()
        look(number)
        times[is_foreign].append(time.perf_counter() - started)
    both = np.array(times[True] + times[False])
    split = len(times[True])

    def difference(values: np.ndarray) -> float:
        return float(np.median(values[:split]) - np.median(values[split:]))

    found = difference(both)
    rng = np.random.default_rng(0)
    as_far = sum(abs(difference(rng.permutation(both))) >= abs(found) for _ in range(RELABELLINGS))
    medians = [1e6 * statistics.median(times[kind]) for kind in (True, False)]
    print(
        f"{name}: {medians[0]:.3f} us where a foreign tenant has it, {medians[1]:.3f} where nobody has; "
        f"p = {as_far / RELABELLINGS:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=5000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, CompletionCache(Path(folder) / "cache") as cache:
        fill(cache, args.entries)
        bolt = partition_key(tenant="bolt", **SCOPE, embedder="e", request={})
        keys = {
            number: completion_key(tenant="bolt", **SCOPE, request=request(number))
            for number in range(3 * args.entries)
        }
        vectors = {number: embedding_of(number) for number in keys}
        foreign = list(range(args.entries))
        nobodys = list(range(2 * args.entries, 3 * args.entries))
        compare("exact", lambda number: cache.lookup(keys[number]), foreign, nobodys)
        compare("by meaning", lambda number: cache.nearest(bolt, vectors[number]), foreign, nobodys)


if __name__ == "__main__":
    main()
