"""Folders that cannot be used, and disks that stop taking data."""

import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import lmdb
import orjson
import pytest
from cache_worker import make_completion, make_key

from penstock.cache import CompletionCache, environment, writer
from penstock.errors import ConfigError


def filled(path: Path, count: int = 200) -> None:
    with CompletionCache(path) as cache:
        for number in range(count):
            cache.store(make_key(number), make_completion(number))


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        CompletionCache(path)
    assert caught.value.param == "cache.path"
    assert str(path) in caught.value.message
    return caught.value.message


def set_marker(path: Path, marker: bytes) -> None:
    with lmdb.open(str(path), max_dbs=16) as env, env.begin(write=True) as txn:
        txn.put(environment._MARKER, marker)


def test_a_newer_format_is_refused_and_left_alone(path):
    filled(path)
    set_marker(path, orjson.dumps({"format": environment.FORMAT + 1}))
    before = (path / "data.mdb").read_bytes()
    message = refusal(path)
    assert f"format {environment.FORMAT + 1}" in message
    assert "Upgrade" in message
    assert (path / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("marker", [b"", b"7", b"{}", b"\xff\x00"])
def test_a_marker_that_makes_no_sense_is_refused(path, marker):
    filled(path)
    set_marker(path, marker)
    assert "Move the folder away" in refusal(path)


def test_another_programs_lmdb_is_refused_and_left_alone(path):
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"data")
    assert "another program's data" in refusal(path)
    with lmdb.open(str(path)) as env, env.begin() as txn:
        assert list(txn.cursor()) == [(b"theirs", b"data")]


@pytest.mark.parametrize("garbage", [b"x", b"not an LMDB file " * 4000, bytes(65536), os.urandom(65536)])
def test_garbage_is_refused(path, garbage):
    path.mkdir()
    (path / "data.mdb").write_bytes(garbage)
    assert "Move the folder away" in refusal(path)
    assert (path / "data.mdb").read_bytes() == garbage


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused_not_a_crash(path, keep):
    """LMDB would die of SIGBUS on the first page that is missing; hence a process of its own."""
    filled(path)
    data = path / "data.mdb"
    os.truncate(data, int(data.stat().st_size * keep))
    script = f"""
from pathlib import Path
from penstock.cache import CompletionCache
from penstock.errors import ConfigError
try:
    CompletionCache(Path({str(path)!r}))
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Move the folder away" in done.stdout


def test_a_damaged_lock_file_does_not_matter(path):
    filled(path)
    (path / "lock.mdb").write_bytes(os.urandom(8192))
    with CompletionCache(path) as cache:
        assert cache.lookup(make_key(1)) is not None


def test_a_file_in_the_place_of_the_folder_is_refused(path):
    path.write_text("hello")
    assert "writable folder" in refusal(path)
    assert path.read_text() == "hello"


def test_opening_twice_in_one_process_is_refused(open_cache, path):
    first = open_cache()
    assert "already open" in refusal(path)
    first.store(make_key(1), make_completion(1))
    first.flush()
    assert first.stats().entries == 1


def test_the_files_are_private(open_cache, path):
    open_cache()
    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}


def test_a_full_disk_costs_one_warning_and_no_request(open_cache, path, monkeypatch, caplog):
    """The kernel refuses to extend the file (RLIMIT_FSIZE), as if the disk were full; then allows it."""
    cache = open_cache()
    for number in range(20):
        cache.store(make_key(number), make_completion(number))
    cache.flush()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((path / "data.mdb").stat().st_size, limits[1]))
    try:
        for number in range(100, 400):
            cache.store(make_key(number), make_completion(number))
            if number % 50 == 49:
                cache.flush()
        stats = cache.stats()
        assert stats.state == "reading"
        assert stats.dropped > 0
        assert stats.stored + stats.dropped == 320
        assert cache.lookup(make_key(7)).completion == make_completion(7)
        assert cache.lookup(make_key(399)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "ulimit -f" in warnings[0].getMessage()

    cache.store(make_key(500), make_completion(500))
    assert cache.lookup(make_key(500)) is None, "the next attempt waits"
    monkeypatch.setattr(cache._writer, "_retry_at", 0.0)
    cache.store(make_key(500), make_completion(500))
    cache.flush()
    assert cache.stats().state == "on"
    assert cache.lookup(make_key(500)).completion == make_completion(500)
    assert "can be written again" in caplog.records[-1].getMessage()
    cache.close()
    with CompletionCache(path) as reopened:
        assert reopened.lookup(make_key(7)) is not None
        assert reopened.lookup(make_key(500)) is not None


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_the_remedy_names_the_cause():
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError) as caught:
        full.write(b"x")
    assert "disk space" in writer._remedy(caught.value)


def test_a_stalled_reader_costs_no_more_disk_than_the_limit(open_cache, path, monkeypatch, caplog):
    """An open read transaction pins all pages freed since: writing stops, and goes on when it is gone."""
    monkeypatch.setattr(environment, "_MIN_MAP", 1 << 20)
    monkeypatch.setattr(environment, "_MAP_LIMIT", 2)
    cache = open_cache(max_bytes=1 << 20)
    script = f"""
import lmdb, time
txn = lmdb.open({str(path)!r}, max_dbs=16, map_size=1 << 21).begin()
print("reading", flush=True)
time.sleep(60)
"""
    reader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout.readline() == "reading\n"
        for number in range(600):
            cache.store(make_key(number), make_completion(number, 3000))
            if number % 16 == 15:
                cache.flush()
        assert cache.stats().state == "reading"
        assert cache.stats().file_bytes <= 2 << 20
        assert len(caplog.records) == 1
        assert "stalled reader" in caplog.records[0].getMessage()
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()
    monkeypatch.setattr(cache._writer, "_retry_at", 0.0)
    for number in range(1000, 1600):
        cache.store(make_key(number), make_completion(number, 3000))
        if number % 16 == 15:
            cache.flush()
    assert cache.stats().state == "on"
    assert cache.lookup(make_key(1599)) is not None
    assert cache.stats().file_bytes <= 2 << 20


def test_a_map_that_may_not_grow_costs_one_warning(open_cache, monkeypatch, caplog):
    cache = open_cache(max_bytes=1 << 20)
    cache._env._map_limit = 1 << 18
    cache._env._resize(1 << 18)
    for number in range(300):
        cache.store(make_key(number), make_completion(number, 3000))
    cache.flush()
    assert cache.stats().state == "reading"
    assert cache.lookup(make_key(299)) is None
    assert len(caplog.records) == 1
    assert "stalled reader" in caplog.records[0].getMessage()


def test_damage_found_while_reading_turns_the_cache_off(open_cache, monkeypatch, caplog):
    cache = open_cache()
    cache.store(make_key(1), make_completion(1))
    cache.flush()
    page = cache._env.page_size
    with open(cache._env.path / "data.mdb", "r+b") as file:
        for number in range(2, file.seek(0, 2) // page):
            file.seek(number * page)
            file.write(bytes(page))
    for _ in range(3):
        assert cache.lookup(make_key(1)) is None
        cache.store(make_key(1), make_completion(1))
        cache.flush()
    assert cache.stats().state == "off"
    assert len(caplog.records) == 1
    assert "is off" in caplog.records[0].getMessage()
