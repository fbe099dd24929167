"""The semantic index on clustered embeddings: recall against exact search, latency, build rate, size, cold open.

    python bench/semantic_index.py --entries 1000000 --queries 1000

Entries lie around 20,000 centres; mean and spectrum are about those of sentence embeddings (MiniLM: mean of length 0.27, and
the share of pairs within 22 of 64 bits is 6 % under random planes). A query is an entry moved so far that their cosine is
drawn from 0.8 to 0.98. Exact search is a float32 product with all entries. Prints JSON lines.
`--numpy` measures the scan without the C library; `--compare` adds usearch and hnswlib where they are installed.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from penstock.cache.environment import CacheEnvironment
from penstock.cache.semantic import SemanticIndex, scan

DIMS = 384
CENTRES = 20_000
PARTITION = b"bench"
BATCH = 8192


def units(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def embeddings(entries: int, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows: entries [N, DIMS], queries [Q, DIMS]."""
    random = np.random.default_rng(seed)
    spectrum = (1 + np.arange(DIMS, dtype=np.float32)) ** -0.5
    basis = np.linalg.qr(random.standard_normal((DIMS, DIMS)))[0].astype(np.float32)

    def noise(count: int) -> np.ndarray:
        return units(random.standard_normal((count, DIMS), np.float32) * spectrum) @ basis

    centres = noise(CENTRES)
    mean = 0.28 * noise(1)
    stored = np.empty((entries, DIMS), np.float32)
    for begin in range(0, entries, 50_000):
        part = stored[begin : begin + 50_000]
        near = random.uniform(0.5, 0.95, (len(part), 1)).astype(np.float32)  # cosine to the centre, about
        part[:] = units(
            near * centres[random.integers(0, CENTRES, len(part))]
            + np.sqrt(1 - near**2) * noise(len(part))
            + mean
        )
    near = random.uniform(0.8, 0.98, (queries, 1)).astype(np.float32)
    return stored, units(
        near * stored[random.integers(0, entries, queries)] + np.sqrt(1 - near**2) * noise(queries)
    )


def exact(stored: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each query: the nearest entry and its cosine."""
    best, where = np.full(len(queries), -2, np.float32), np.zeros(len(queries), np.int64)
    for begin in range(0, len(stored), 50_000):
        cosines = queries @ stored[begin : begin + 50_000].T
        places = cosines.argmax(axis=1)
        found = cosines[np.arange(len(queries)), places]
        where = np.where(found > best, places + begin, where)
        best = np.maximum(found, best)
    return where, best


def report(
    name: str,
    truth: np.ndarray,
    cosine: np.ndarray,
    queries: np.ndarray,
    search: Callable[[np.ndarray], int],
    **more: object,
) -> None:
    found, seconds = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(search(query))
        seconds.append(time.perf_counter() - start)
    right, high = np.array(found) == truth, cosine > 0.85
    figures = {
        "recall@1": round(float(right.mean()), 4),
        "recall@1 above 0.85": round(float(right[high].mean()), 4),
        "p50 ms": round(float(np.percentile(seconds, 50)) * 1e3, 3),
        "p99 ms": round(float(np.percentile(seconds, 99)) * 1e3, 3),
    }
    print(json.dumps({"index": name, **figures, **more}), flush=True)


def build(path: Path, stored: np.ndarray) -> dict[str, object]:
    environment = CacheEnvironment(path, max_bytes=4 << 30)
    opened = SemanticIndex(environment, DIMS)
    start = time.perf_counter()
    for begin in range(0, len(stored), BATCH):
        batch = {
            number.to_bytes(40, "big"): stored[number]
            for number in range(begin, min(begin + BATCH, len(stored)))
        }
        with environment.write() as txn:
            trainable = opened.change(txn, {PARTITION: batch})
        for partition in trainable:
            opened.train(partition)
    seconds = time.perf_counter() - start
    environment.close()
    return build_figures(len(stored), seconds, (path / "data.mdb").stat().st_size)


def build_figures(entries: int, seconds: float, size: int) -> dict[str, object]:
    return {"build entries/s": round(entries / seconds), "bytes/entry": round(size / entries)}


def measure(path: Path, stored: np.ndarray, queries: np.ndarray) -> None:
    truth, cosine = exact(stored, queries)
    more = build(path, stored)
    start = time.perf_counter()
    environment = CacheEnvironment(path, max_bytes=4 << 30)
    opened = SemanticIndex(environment, DIMS)
    opened.search(PARTITION, queries[0])
    more["cold open s"] = round(time.perf_counter() - start, 3)
    more["mirror bytes/entry"] = round(opened._mirrors.num_bytes / len(stored), 1)
    report("penstock", truth, cosine, queries, lambda query: best_of(opened, query), **more)
    environment.close()


def best_of(opened: SemanticIndex, query: np.ndarray) -> int:
    matches = opened.search(PARTITION, query)
    return int.from_bytes(matches[0].key, "big") if matches else -1


def compare(stored: np.ndarray, queries: np.ndarray) -> None:
    truth, cosine = exact(stored, queries)
    if importlib.util.find_spec("usearch"):
        from usearch.index import Index

        usearch = Index(ndim=DIMS, metric="cos", dtype="i8")
        start = time.perf_counter()
        usearch.add(np.arange(len(stored)), stored, threads=1)
        more = build_figures(len(stored), time.perf_counter() - start, usearch.memory_usage)
        report(
            "usearch int8",
            truth,
            cosine,
            queries,
            lambda query: int(usearch.search(query, 1).keys[0]),
            **more,
        )
    if importlib.util.find_spec("hnswlib"):
        import hnswlib

        hnsw = hnswlib.Index("cosine", DIMS)
        hnsw.init_index(len(stored), random_seed=0)
        start = time.perf_counter()
        hnsw.add_items(stored, num_threads=1)
        seconds = time.perf_counter() - start
        hnsw.set_num_threads(1)
        hnsw.set_ef(64)
        with tempfile.TemporaryDirectory() as folder:
            hnsw.save_index(f"{folder}/index")
            more = build_figures(len(stored), seconds, Path(folder, "index").stat().st_size)
        report(
            "hnswlib float32",
            truth,
            cosine,
            queries,
            lambda query: int(hnsw.knn_query(query, 1)[0][0, 0]),
            **more,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--numpy", action="store_true")
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    if args.numpy:
        scan.library = lambda: None
    stored, queries = embeddings(args.entries, args.queries, args.seed)
    print(json.dumps({"entries": args.entries, "queries": args.queries, "C": scan.library() is not None}))
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder) / "index.lmdb", stored, queries)
    if args.compare:
        compare(stored, queries)


if __name__ == "__main__":
    main()
