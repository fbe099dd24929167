"""Several processes and one cache; processes that die; processes that fork."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cache_worker
import lmdb
import pytest
from cache_worker import make_completion, make_key

from penstock.cache import CompletionCache
from penstock.errors import ConfigError, PenstockError

slow = pytest.mark.slow


def start_worker(
    path: Path, tenant: str, first: int = 0, count: int = 2000, batch: int = 50
) -> subprocess.Popen[str]:
    arguments = [str(path), tenant, str(first), str(count), str(batch)]
    return subprocess.Popen(
        [sys.executable, cache_worker.__file__, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=slow)])
def test_two_processes_write_while_a_third_reads(open_cache, path, count):
    cache = open_cache()
    writers = {tenant: start_worker(path, tenant, count=count) for tenant in ("acme", "bolt")}
    seen = 0
    while any(process.poll() is None for process in writers.values()):
        for number in range(0, count, 97):
            for tenant in writers:
                hit = cache.lookup(make_key(number, tenant))
                seen += hit is not None
                assert hit is None or hit.completion == make_completion(number)
    assert [process.wait() for process in writers.values()] == [0, 0]
    for process in writers.values():
        process.stdout.close()
    for tenant in writers:
        for number in range(count):
            assert cache.lookup(make_key(number, tenant)).completion == make_completion(number)
    assert seen > 0, "the reader never met a writer at work"
    assert cache.stats().damaged == cache.stats().collisions == 0


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=slow)])
def test_what_flush_acknowledged_survives_kill_9(open_cache, path, kills):
    acknowledged = 0
    for round_ in range(kills):
        process = start_worker(path, "acme", first=acknowledged, count=100_000, batch=10)
        for _ in range(3 + round_ % 10):
            acknowledged = int(process.stdout.readline())
        time.sleep(0.003 * round_ % 0.017)  # at another moment of the batch each time
        process.kill()
        process.stdout.read()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        cache = open_cache()
        for number in range(acknowledged):
            assert cache.lookup(make_key(number)).completion == make_completion(number)
        stats = cache.stats()
        later = [n for n in range(acknowledged, acknowledged + 2000) if cache.lookup(make_key(n)) is not None]
        assert stats.entries == acknowledged + len(later)
        assert cache.stats().damaged == 0
        assert_indexes_agree(cache)
        cache.close()


def assert_indexes_agree(cache: CompletionCache) -> None:
    with cache._env.write() as txn:
        counts = {txn.stat(db)["entries"] for db in (cache._env.records, cache._env.bodies, cache._env.order)}
    assert len(counts) == 1


def test_least_recently_used_holds_across_processes(tmp_path, path, clock, open_cache):
    """Uses noted by one process protect entries from another one's evictions."""
    cap = 1 << 20
    ours = open_cache(clock=clock, max_bytes=cap)
    for number in range(100):
        clock.now += 1
        ours.store(make_key(number), make_completion(number))
    ours.flush()
    clock.now += 1
    for number in range(10):
        assert ours.lookup(make_key(number)) is not None
    ours.flush()
    script = f"""
import sys
from pathlib import Path
from cache_worker import make_completion, make_key
from penstock.cache import CompletionCache
cache = CompletionCache(Path({str(path)!r}), max_bytes={cap}, clock=lambda: {clock.now + 5})
number = 1000
while cache.stats().evicted < 60:
    cache.store(make_key(number), make_completion(number)); cache.flush(); number += 1
cache.close()
"""
    environment = os.environ | {"PYTHONPATH": str(Path(cache_worker.__file__).parent)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert [n for n in range(70) if ours.lookup(make_key(n)) is not None] == list(range(10))


def test_a_map_grown_by_another_process_is_adopted(open_cache, path):
    """One process has a small cap and map; another writes beyond that map's end."""
    small = open_cache(max_bytes=1 << 20)
    script = f"""
from pathlib import Path
from cache_worker import make_completion, make_key
from penstock.cache import CompletionCache
cache = CompletionCache(Path({str(path)!r}), max_bytes=1 << 28)
for number in range(100):
    cache.store(make_key(number), make_completion(number, 500_000)); cache.flush()
cache.close()
"""
    environment = os.environ | {"PYTHONPATH": str(Path(cache_worker.__file__).parent)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert (path / "data.mdb").stat().st_size > 64 << 20
    with pytest.raises(lmdb.MapResizedError):
        small._env.read(make_key(0).place)
    deadline = time.monotonic() + 5
    while small.lookup(make_key(99)) is None:  # a miss at first, never an error; adopted without being asked
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert small.lookup(make_key(99)).completion == make_completion(99, 500_000)


def test_a_map_grows_when_it_is_full(open_cache, monkeypatch):
    monkeypatch.setattr("penstock.cache.environment._MIN_MAP", 1 << 18)
    cache = open_cache(max_bytes=1 << 20)
    cache._env._resize(1 << 18)
    for number in range(100):
        cache.store(make_key(number), make_completion(number, 3000))
    cache.flush()
    stats = cache.stats()
    assert (stats.stored, stats.dropped, stats.state) == (100, 0, "on")
    assert stats.file_bytes > 1 << 18
    for number in range(100):
        assert cache.lookup(make_key(number)).completion == make_completion(number, 3000)


def test_the_slot_of_a_dead_reader_is_freed(open_cache, path):
    cache = open_cache()
    cache.store(make_key(1), make_completion(1))
    cache.flush()
    script = f"""
import lmdb, os, signal
env = lmdb.open({str(path)!r}, max_dbs=16)
txn = env.begin()
txn.get(b"any")
os.kill(os.getpid(), signal.SIGKILL)
"""
    before = cache._env._env.readers()
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert cache._env._env.readers() != before
    cache._writer.wake()
    cache.flush()
    assert cache._env._env.readers() == before


def test_no_read_transaction_stays_open(open_cache):
    """A reader left open would pin every page freed since; idle slots show no transaction ('-')."""
    cache = open_cache()
    cache.store(make_key(1), make_completion(1))
    cache.flush()
    cache.lookup(make_key(1))
    cache.lookup(make_key(2))
    cache.stats()
    slots = [line.split() for line in cache._env._env.readers().splitlines()[1:]]
    assert all(slot[2] == "-" for slot in slots if slot)


def in_child(cache: CompletionCache, path: Path, answers: "multiprocessing.Queue[str]") -> None:
    uses = (
        lambda: cache.lookup(make_key(1)),
        lambda: cache.store(make_key(1), make_completion(1)),
        cache.flush,
    )
    for use in uses:
        try:
            use()
        except PenstockError as error:
            answers.put(str(error))
    cache.close()
    answers.put(cache.stats().state)
    try:
        CompletionCache(path)
    except ConfigError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_no_handle_is_carried_across_fork(open_cache, path):
    cache = open_cache()
    cache.store(make_key(1), make_completion(1))
    cache.flush()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=in_child, args=(cache, path, answers))
    process.start()
    said = [answers.get(timeout=20) for _ in range(5)]
    process.join(20)
    assert process.exitcode == 0
    assert all("forked" in message for message in said[:3])
    assert said[3] == "forked"
    assert "open it in each one after forking" in said[4]
    assert cache.lookup(make_key(1)) is not None, "the parent's handle must not notice"
    cache.store(make_key(2), make_completion(2))
    cache.flush()
    assert cache.lookup(make_key(2)) is not None
