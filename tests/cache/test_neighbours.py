"""Completions found by meaning: which ones, and that index and completions agree whatever comes and goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import neighbour_worker
import numpy as np
import pytest
from cache_worker import make_completion, make_key
from neighbour_worker import make_partition, make_question, store
from semantic_worker import DIMS, make_embedding

from penstock.cache import CompletionCache
from penstock.errors import ConfigError, PenstockError


def nearest(cache: CompletionCache, number: int, tenant: str = "acme"):
    """The neighbour with the very embedding of `number`, or None."""
    found = cache.nearest(make_partition(tenant), make_embedding(number))
    return found[0] if found and found[0].similarity > 0.999 else None


def assert_agree(cache: CompletionCache) -> None:
    """The index holds what the ledger holds, and nothing else."""
    index, environment = cache._writer.index, cache._env
    with environment.reading() as txn:
        kept = txn.stat(environment.records)["entries"]
        assert txn.stat(index._store.keys)["entries"] == txn.stat(index._store.slots)["entries"] == kept


@pytest.fixture
def open_semantic(open_cache):
    def open_one(**settings: object) -> CompletionCache:
        cache = open_cache(**settings)
        cache.open_index(DIMS)
        return cache

    return open_one


def test_a_neighbour_comes_whole(open_semantic, clock):
    cache = open_semantic(clock=clock)
    store(cache, 3)
    cache.store(make_key(4), make_completion(4))  # without an embedding: found by its key only
    cache.flush()
    clock.now += 5
    (found,) = cache.nearest(make_partition(), make_embedding(3) + 0.1 * make_embedding(9), k=5)
    assert found.completion == make_completion(3) and found.question == make_question(3)
    assert found.place == make_key(3).place and found.age == 5 and 0.98 < found.similarity < 0.999
    assert found.question.excerpt == "before question 3 after"
    assert cache.lookup(make_key(3)).completion == make_completion(3)
    assert cache.lookup(make_key(4)).completion == make_completion(4)


def test_all_that_must_be_equal_parts_them(open_semantic):
    cache = open_semantic()
    store(cache, 3)
    cache.flush()
    others = {
        "tenant": "bolt",
        "namespace": "n",
        "model": "m",
        "fingerprint": "f",
        "embedder": "d",
        "request": {"top_p": 0.5},
    }
    for name, value in others.items():
        assert cache.nearest(make_partition(**{name: value}), make_embedding(3)) == [], name
    assert cache.nearest(make_partition(), make_embedding(3))


def test_what_leaves_the_cache_leaves_the_index(open_semantic, clock):
    cache = open_semantic(clock=clock)
    for number in range(20):
        store(cache, number, ttl=10 if number % 2 else None)
    store(cache, 4)  # again
    cache.flush()
    assert_agree(cache)
    clock.now += 11
    assert nearest(cache, 4) is not None and nearest(cache, 5) is None, "over, though still in the file"
    cache.flush()
    assert cache.stats().expired == 10
    assert_agree(cache)
    assert nearest(cache, 5) is None and nearest(cache, 6) is not None


def test_eviction_keeps_index_and_completions_equal_and_the_file_near_its_cap(open_semantic, clock):
    cap = 2 << 20
    cache = open_semantic(clock=clock, max_bytes=cap)
    for number in range(3000):
        clock.now += 1
        store(cache, number)
        if number % 100 == 99:
            assert nearest(cache, 0) is not None or number < 100 or number == 99
            cache.touch(make_key(0).place)
            cache.flush()
            assert cache.stats().used_bytes <= cap, number
    assert cache.stats().evicted > 1500
    assert_agree(cache)
    assert nearest(cache, 0) is not None, "a neighbour of use stays"
    assert nearest(cache, 1) is None and nearest(cache, 2999) is not None


@pytest.mark.parametrize("made_later", [False, True])
def test_without_an_embedder_what_is_evicted_still_leaves_the_index(open_cache, path, clock, made_later):
    """Also an index that another process makes only after this one has opened the folder."""
    small = open_cache(clock=clock, max_bytes=1 << 20) if made_later else None
    script = f"""
from pathlib import Path
from neighbour_worker import *
cache = CompletionCache(Path({str(path)!r}), clock=lambda: {clock.now})
cache.open_index(DIMS)
for number in range(2000):
    store(cache, number)
    if number % 500 == 499: cache.flush()
cache.close()
"""
    environment = os.environ | {"PYTHONPATH": str(Path(neighbour_worker.__file__).parent)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    clock.now += 1
    small = small or open_cache(clock=clock, max_bytes=1 << 20)
    small.store(make_key(5000), make_completion(5000))
    small.flush()
    stats = small.stats()
    # A full MiB holds 330; what the evicted ones leave behind in the index may cost a third of them.
    assert 200 < stats.entries < 350 and stats.used_bytes <= 1 << 20
    with small._env.reading() as txn:  # the last one has no embedding
        assert txn.stat(small._writer.index._store.keys)["entries"] == stats.entries - 1


def test_embeddings_of_another_length_are_refused(open_semantic, open_cache):
    cache = open_semantic()
    store(cache, 1)
    with pytest.raises(PenstockError, match=rf"holds vectors of {DIMS} numbers"):
        cache.store(make_key(2), make_completion(2), question=make_question(2), embedding=np.ones(DIMS + 1))
    with pytest.raises(ConfigError, match=rf"holds embeddings of {DIMS} numbers, and the embedder makes 384"):
        cache.open_index(384)
    cache.open_index(DIMS)
    cache.close()
    again = open_cache()
    with pytest.raises(ConfigError, match="and the embedder makes 384"):
        again.open_index(384)
    again.open_index(DIMS)
    assert nearest(again, 1) is not None


def test_a_closed_cache_finds_no_neighbours(open_semantic):
    cache = open_semantic()
    cache.close()
    with pytest.raises(PenstockError, match="is closed"):
        cache.nearest(make_partition(), make_embedding(1))


def start_worker(path: Path, tenant: str, first: int, max_bytes: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, neighbour_worker.__file__, str(path), tenant, str(first), str(max_bytes)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("kills", "max_bytes"), [(4, 1 << 28), (4, 1 << 20), pytest.param(100, 1 << 20, marks=pytest.mark.slow)]
)
def test_kill_9_leaves_index_and_completions_equal(open_semantic, path, kills, max_bytes):
    acknowledged = 0
    for round_ in range(kills):
        worker = start_worker(path, "acme", acknowledged, max_bytes)
        for _ in range(20 + round_ % 10):
            acknowledged = int(worker.stdout.readline())
        time.sleep(0.004 * (round_ % 7))  # at another moment of the batch each time
        worker.kill()
        worker.stdout.read()
        worker.stdout.close()
        assert worker.wait() == -signal.SIGKILL
        cache = open_semantic(max_bytes=max_bytes)
        assert_agree(cache)
        cache.flush()
        assert_agree(cache)
        for number in range(acknowledged - 50, acknowledged):
            found = nearest(cache, number)
            assert found.completion == make_completion(number) and found.question == make_question(number)
        cache.close()


def test_two_processes_see_each_others_entries(open_semantic, path):
    cache = open_semantic()
    worker = start_worker(path, "bolt", 0, 1 << 28)
    for _ in range(10):
        last = int(worker.stdout.readline())
        assert nearest(cache, last - 1, "bolt").completion == make_completion(last - 1)
        store(cache, last)
    worker.kill()
    worker.stdout.close()
    worker.wait()
    cache.flush()
    assert nearest(cache, last) is not None and nearest(cache, last - 1) is None, "not the other's tenant"
    assert_agree(cache)
