"""Times the exact rung inside one process: key, lookup with decode, store; idle and beside a busy writer.

python bench/cache_exact.py [--entries 20000] [--tokens 256] [--path FOLDER]
"""

import argparse
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import lmdb

from penstock.cache import CachedChoice, CachedCompletion, CacheKey, CompletionCache, completion_key

QUESTION = "How do I list the files of a tar.gz archive without extracting it, newest first? " * 6


def make_request(number: int) -> dict[str, object]:
    return {
        "messages": [
            {"role": "system", "content": "You answer with one command and one sentence."},
            {"role": "user", "content": f"{QUESTION}({number})"},
        ],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 256,
        "stop": ["\n\n"],
        "seed": 7,
        "logit_bias": None,
        "response_format": None,
    }


def make_key(number: int) -> CacheKey:
    return completion_key(
        tenant="bench", namespace="", model="builtin", fingerprint="f00d", request=make_request(number)
    )


def make_completion(number: int, tokens: int) -> CachedCompletion:
    ids = [(number * 31 + position * 7919) % 32000 for position in range(tokens)]
    return CachedCompletion([CachedChoice("four" * tokens, ids, "stop", None, None)], 180, 1.5)


def report(name: str, seconds: list[float]) -> None:
    seconds.sort()
    p50, p99 = seconds[len(seconds) // 2] * 1e6, seconds[len(seconds) * 99 // 100] * 1e6
    print(f"{name:<46}{p50:>9.1f}{p99:>9.1f}")


def timed(count: int, call: Callable[[int], object], pause: float = 0.0) -> list[float]:
    seconds = []
    for number in range(count):
        start = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - start)
        if pause:
            time.sleep(pause)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each stored completion")
    parser.add_argument(
        "--path", type=Path, default=None, help="where the file lies; default: a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.path) as folder:
        measure(Path(folder) / "bench.lmdb", options.entries, options.tokens)


def measure(path: Path, entries: int, tokens: int) -> None:
    print(f"Python {platform.python_version()}, LMDB {'.'.join(map(str, lmdb.version()))}; {entries} entries")
    completion = make_completion(1, tokens)
    keys = [make_key(number) for number in range(entries)]
    completions = [make_completion(number, tokens) for number in range(256)]
    cache = CompletionCache(path)

    start = time.perf_counter()
    in_store: list[float] = []
    for first in range(0, entries, 512):
        batch = keys[first : first + 512]
        in_store += timed(len(batch), lambda n: cache.store(batch[n], completions[n % 256]))  # noqa: B023
        cache.flush()
    put = (time.perf_counter() - start) / entries * 1e6
    stats = cache.stats()
    assert stats.stored == entries, stats

    scattered = [keys[number * 7919 % entries] for number in range(entries)]
    print(f"{'µs':<46}{'p50':>9}{'p99':>9}")
    report("key (canonical form, xxh3, blake2b)", timed(entries, make_key))
    report("lookup + decode, hit", timed(entries, lambda n: cache.lookup(scattered[n])))
    report("key + lookup + decode, hit", timed(entries, lambda n: cache.lookup(make_key(n * 7919 % entries))))
    report("lookup, miss", timed(entries, lambda n: cache.lookup(CacheKey(bytes(40), bytes(32)))))
    report("store (encode and queue)", in_store)
    beside_writer(cache, scattered, completion)
    print(f"{'store, amortised until synced (512 a batch)':<46}{put:>9.1f}")
    print(f"{'file bytes per entry':<46}{stats.file_bytes / entries:>9.0f}")
    cache.close()

    start = time.perf_counter()
    cache = CompletionCache(path)
    assert cache.lookup(keys[0]) is not None
    print(f"{'open and first hit, ms':<46}{(time.perf_counter() - start) * 1e3:>9.2f}")
    cache.close()


def beside_writer(cache: CompletionCache, keys: list[CacheKey], completion: CachedCompletion) -> None:
    """Lookups as an event loop makes them, one per half millisecond, while stores are being committed."""
    stop = threading.Event()

    def write() -> None:
        number = 10_000_000
        while not stop.is_set():
            for _ in range(32):
                cache.store(make_key(number), completion)
                number += 1
            cache.flush()

    thread = threading.Thread(target=write)
    thread.start()
    report(
        "lookup + decode, beside a busy writer",
        timed(4000, lambda n: cache.lookup(keys[n % len(keys)]), 0.0005),
    )
    stop.set()
    thread.join()


if __name__ == "__main__":
    main()
