"""What an operator does to a cache: beside processes that use it, and on nothing but what was selected."""

import json
import math
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import lookup_worker
import msgspec
import neighbour_worker
import numpy as np
import pytest
from cache_worker import make_completion, make_key
from neighbour_worker import make_partition, make_question, store
from semantic_worker import DIMS, make_embedding

from penstock.cache import CachedChoice, CachedCompletion, CompletionCache, Question
from penstock.cache.explain import Learnt, neighbours, partitions, verdict
from penstock.cache.export import export, import_
from penstock.cache.key import namespace_hash, tenant_hash
from penstock.cache.opened import OpenedCache, opened_cache
from penstock.cache.operations import backup, purge
from penstock.cache.overview import Overview, overview
from penstock.cache.selection import Selection
from penstock.errors import ConfigError, PenstockError

CAP = 1 << 28
ALL = Selection()


def looked_at(path: Path, now: float) -> Overview:
    with opened_cache(path, max_bytes=CAP) as cache:
        return overview(cache, now)


def fill(path: Path, count: int, clock, *, first: int = 0, tenant: str = "acme", **settings: object) -> None:
    """Each a second older than the next; every tenth without its question."""
    with CompletionCache(path, clock=clock) as cache:
        cache.open_index(DIMS)
        for number in range(first, first + count):
            clock.now += 1
            if number % 10 == 9:
                cache.store(make_key(number, tenant), make_completion(number), **settings)
            else:
                store(cache, number, tenant, **settings)
            if number % 500 == 0:
                cache.flush()  # before the queue is full
        assert cache.stats().dropped == 0


def assert_sound(path: Path, unasked: int) -> None:
    """Index and completions agree, `unasked` of which have no question."""
    with opened_cache(path, max_bytes=CAP) as cache, cache.environment.reading() as txn:
        entries = txn.stat(cache.environment.records)["entries"]
        for database in (cache.environment.bodies, cache.environment.order):
            assert txn.stat(database)["entries"] == entries
        keys = cache.environment.open_database(b"semantic_keys")
        assert txn.stat(keys)["entries"] == entries - unasked


def test_where_there_is_no_cache_none_is_made(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        wanted = pytest.raises(
            ConfigError, match=r"There is no cache at .*; name its folder with --cache-path"
        )
        with wanted, opened_cache(folder, max_bytes=CAP):
            pass
    assert list(tmp_path.iterdir()) == []


def test_to_look_removes_nothing(path, clock):
    """Whatever cap the one who looks believes in, and whatever is over."""
    fill(path, 1100, clock, ttl=5000)
    clock.now += 10000
    with opened_cache(path, max_bytes=1 << 20) as cache:
        seen = overview(cache, clock.now)
        assert len(list(cache.entries())) == seen.entries == seen.over == 1100
    assert seen.used_bytes > seen.max_bytes == 1 << 20
    assert looked_at(path, clock.now).entries == 1100


def test_an_overview_counts(path, clock):
    fill(path, 40, clock)
    with CompletionCache(path, clock=clock) as cache:
        cache.store(make_key(7, "bolt", "apart"), make_completion(7))
    fill(path, 20, clock, first=100, tenant="bolt", ttl=30)
    clock.now += 16
    seen = looked_at(path, clock.now)
    assert (seen.entries, seen.with_question, seen.expiring, seen.over, seen.damaged) == (61, 54, 20, 6, 0)
    assert seen.engine_seconds == sum(range(40)) / 8 + sum(range(100, 120)) / 8 + 7 / 8
    assert (seen.ages.least, seen.ages.p50, seen.ages.most) == (16, 45, 75)
    assert (
        700 < seen.sizes.least <= seen.sizes.p50 <= seen.sizes.p90 <= seen.sizes.p99 <= seen.sizes.most < 2000
    )
    acme, bolt, apart = seen.scopes
    assert acme.scope == tenant_hash("acme") + namespace_hash("") and acme.entries == 40
    assert bolt.scope == tenant_hash("bolt") + namespace_hash("") and bolt.entries == 20
    assert apart.scope == tenant_hash("bolt") + namespace_hash("apart") and apart.entries == 1
    index = seen.index
    assert (index.dims, index.partitions, index.entries, index.dead, index.trained_partitions) == (
        DIMS,
        2,
        54,
        0,
        0,
    )


def test_chunks_neither_lose_nor_repeat(path, clock):
    fill(path, 700, clock)
    fill(path, 300, clock, first=1000, tenant="bolt")
    with opened_cache(path, max_bytes=CAP) as cache:
        places = [entry.place for entry in cache.entries()]
        assert places == sorted(set(places)) and len(places) == 1000
        assert sum(1 for _ in cache.entries(tenant_hash("bolt"))) == 300
        newest = [entry.completion.prompt_tokens for entry in cache.newest_first()]
    assert newest == [*range(1299, 999, -1), *range(699, -1, -1)]


@pytest.fixture(scope="module")
def two_tenants(tmp_path_factory) -> Path:
    path, clock = tmp_path_factory.mktemp("two") / "completions.lmdb", Clock()
    fill(path, 600, clock)
    fill(path, 300, clock, first=600, tenant="bolt")
    return path


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (ALL, 0),
        (Selection(tenant=tenant_hash("acme")), 300),
        (Selection(tenant=tenant_hash("nobody")), 900),
        (Selection(namespace=namespace_hash("apart")), 900),
        (Selection(place=make_key(5).place), 899),
        (Selection(place=make_key(5).place, tenant=tenant_hash("bolt")), 900),
        (Selection(matching="QUESTION 77"), 890),  # 77 and 770..778; 779 has no question
        (Selection(matching="answer 779 "), 899),
        (Selection(matching="answer 7", tenant=tenant_hash("bolt")), 900 - 100),
    ],
)
def test_a_purge_takes_what_was_selected(two_tenants, path, clock, selection, left):
    shutil.copytree(two_tenants, path)
    with opened_cache(path, max_bytes=CAP) as cache:
        counted = purge(cache, selection, dry_run=True)
        assert overview(cache, clock.now).entries == 900
        assert purge(cache, selection) == counted and counted.entries == 900 - left
        assert (counted.num_bytes > 0) == (counted.entries > 0)
        kept = list(cache.entries())
        assert len(kept) == left and not any(map(selection.includes, kept))
    assert_sound(path, sum(entry.question is None for entry in kept))


def test_a_purge_by_age(path, clock):
    fill(path, 400, clock)
    with opened_cache(path, max_bytes=CAP) as cache:
        assert purge(cache, Selection(created_before=clock.now - 99)).entries == 300
        assert [e.completion.prompt_tokens for e in cache.newest_first()] == list(range(399, 299, -1))


def start(worker: ModuleType, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(worker.__file__), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_running_process_serves_nothing_that_was_purged(path):
    with start(lookup_worker, path) as server:

        def serves() -> list[int]:
            server.stdin.write("\n")
            server.stdin.flush()
            return [int(count) for count in server.stdout.readline().split()]

        assert serves() == [300, 300, 300, 300]
        with opened_cache(path, max_bytes=CAP) as cache:
            purge(cache, Selection(tenant=tenant_hash("acme")))
            assert serves() == [0, 0, 300, 300]
            purge(cache, Selection(place=make_key(7, "bolt").place))
            assert serves() == [0, 0, 299, 299]
        server.stdin.close()
        assert server.wait(20) == 0


def test_a_purge_and_an_export_beside_a_writer(path, tmp_path, clock):
    fill(path, 1500, clock)
    writer = start(neighbour_worker, path, "bolt", 0, CAP)
    for _ in range(30):
        acknowledged = int(writer.stdout.readline())
    with opened_cache(path, max_bytes=CAP) as cache:
        export(cache, Selection(), tmp_path / "out.jsonl")
        removed = purge(cache, Selection(tenant=tenant_hash("acme")))
        copied = backup(cache, tmp_path / "copy")
    for _ in range(10):
        assert int(writer.stdout.readline()) > acknowledged, "it goes on writing"
    writer.kill()
    writer.communicate()
    assert removed.entries == 1500 and copied > 0
    places = [json.loads(line)["place"] for line in (tmp_path / "out.jsonl").read_text().splitlines()[1:]]
    assert len(places) == len(set(places))
    bolt = [make_key(number, "bolt").place for number in range(acknowledged)]
    acme = [make_key(number).place for number in range(1500)]
    assert {place.hex() for place in bolt + acme} <= set(places)
    for folder in (path, tmp_path / "copy"):
        assert_sound(folder, 0)
        with opened_cache(folder, max_bytes=CAP) as cache:
            assert all(cache.entry(place) is not None for place in bolt)
            assert not list(cache.entries(tenant_hash("acme")))


def varied(path: Path, clock) -> None:
    """Completions of every shape, some with an end to their time."""
    fill(path, 300, clock)
    fill(path, 10, clock, first=400, ttl=1000)
    fill(path, 10, clock, first=500, ttl=20)
    logprobs = [(5, -0.25, [(5, -0.25), (6, -math.inf)]), (7, -math.inf, [])]
    choices = [
        CachedChoice("Äpfel \u2028 \x00 𝄞", [1, 2], "stop", 17, logprobs),
        CachedChoice("", [], "stop", "</s>", None, b'{"\xc3\xa4": 1}'),
    ]
    with CompletionCache(path, clock=clock) as cache:
        cache.open_index(DIMS)
        asked = Question(
            make_partition("bolt"), tenant_hash("bolt") + bytes(8), 'wie viele\n"Äpfel"?', "", ""
        )
        kept = CachedCompletion(choices, 3, 0.1)
        cache.store(make_key(1, "bolt"), kept, question=asked, embedding=make_embedding(77) * 3.7)
    clock.now += 20


def test_an_export_restores_everything(path, tmp_path, clock):
    varied(path, clock)
    file, other = tmp_path / "out.jsonl", tmp_path / "restored.lmdb"
    with opened_cache(path, max_bytes=CAP) as cache:
        assert export(cache, ALL, file) == 321
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and not list(tmp_path.glob("*.part"))
    with opened_cache(other, max_bytes=CAP, create=True) as cache:
        done = import_(cache, file, now=clock.now)
        assert (done.stored, done.over, done.present, done.bad, done.unindexed) == (311, 10, 0, 0, 0)
        again = import_(cache, file, now=clock.now)
        assert (again.stored, again.over, again.present) == (0, 10, 311)
    assert_sound(other, 31)
    with opened_cache(path, max_bytes=CAP) as cache:
        for number in range(500, 510):
            purge(cache, Selection(place=make_key(number).place))
    files = {"file_bytes": 0, "used_bytes": 0}
    before, after = (msgspec.structs.replace(looked_at(at, clock.now), **files) for at in (path, other))
    index = {"dead": 0}
    assert msgspec.structs.replace(before, index=msgspec.structs.replace(before.index, **index)) == after
    with CompletionCache(path, clock=clock) as old, CompletionCache(other, clock=clock) as new:
        keys = [*(make_key(number) for number in (*range(300), *range(400, 410))), make_key(1, "bolt")]
        assert all(old.lookup(key) is not None and old.lookup(key) == new.lookup(key) for key in keys)
        mixed = [make_embedding(number) + make_embedding(number + 1) for number in range(100)]
        for embedding in mixed:
            # What is far is ranked by chance: codes are made anew, from the rounded embeddings.
            assert (found := old.nearest(make_partition(), embedding))[0].similarity > 0.6
            assert new.nearest(make_partition(), embedding) == found
        assert (
            old.nearest(make_partition("bolt"), mixed[0])
            == new.nearest(make_partition("bolt"), mixed[0])
            != []
        )
        assert_equal_expiry(old, new, clock)


def assert_equal_expiry(old: CompletionCache, new: CompletionCache, clock) -> None:
    clock.now += 965
    left = [
        sum(cache.lookup(make_key(number)) is not None for number in range(400, 410)) for cache in (old, new)
    ]
    assert 0 < left[0] == left[1] < 10


def test_of_two_versions_the_newer_stays(path, tmp_path, clock):
    fill(path, 3, clock)
    file = tmp_path / "old.jsonl"
    with opened_cache(path, max_bytes=CAP) as cache:
        export(cache, ALL, file)
    clock.now += 10
    with CompletionCache(path, clock=clock) as cache:
        cache.store(make_key(1), make_completion(111))
    newer = tmp_path / "new.jsonl"
    with opened_cache(path, max_bytes=CAP) as cache:
        export(cache, ALL, newer)
        assert import_(cache, file, now=clock.now).stored == 0
        assert cache.entry(make_key(1).place).completion == make_completion(111)
    other = tmp_path / "other.lmdb"
    with opened_cache(other, max_bytes=CAP, create=True) as cache:
        assert import_(cache, file, now=clock.now).stored == 3
        assert import_(cache, newer, now=clock.now).stored == 1
        assert cache.entry(make_key(1).place).completion == make_completion(111)
        found = cache.index.search(make_partition(), make_embedding(1), 3)
        assert make_key(1).place not in [match.key for match in found], "its question went with it"


def changed(line: dict, **changes: object) -> dict:
    """Dotted names reach inside."""
    line = json.loads(json.dumps(line))
    for name, value in changes.items():
        *outer, last = name.split("__")
        inside = line
        for part in outer:
            inside = inside[part]
        inside[last] = value
    return line


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "malformed"),
        ({"place": "ab"}, "place is 'ab'; it must be 80 hexadecimal digits"),
        ({"digest": "xy" * 32}, "digest is .*; it must be 64 hexadecimal digits"),
        ({"completion__choices": [{"text": 1}]}, r"Expected `str`, got `int` - at `\$.completion.choices"),
        ({"question__partition": make_partition("bolt").hex()}, "belongs to another tenant or namespace"),
        (
            {"question__family": (tenant_hash("bolt") + bytes(8)).hex()},
            "belongs to another tenant or namespace",
        ),
        ({"created": -1}, "no times in their order"),
        ({"expires": 1.0}, "no times in their order"),
        ({"accessed": 1 << 63}, "no times in their order"),
        ({"embedding__int8": ""}, "has no direction"),
        ({"embedding__scale": 0.0}, "has no direction"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_line_is_named(path, tmp_path, clock, changes, reason):
    fill(path, 3, clock)
    file = tmp_path / "out.jsonl"
    with opened_cache(path, max_bytes=CAP) as cache:
        export(cache, ALL, file)
    header, first, second, third = file.read_text().splitlines()
    bad = second[:40] if changes is None else json.dumps(changed(json.loads(second), **changes))
    file.write_text("\n".join([header, first, bad, third]) + "\n")
    with opened_cache(tmp_path / "other.lmdb", max_bytes=CAP, create=True) as cache:
        with pytest.raises(PenstockError, match=rf"out.jsonl, line 3: .*{reason}.*--skip-bad"):
            import_(cache, file, now=clock.now)
        assert [entry.place.hex() for entry in cache.entries()] == [json.loads(first)["place"]]
        done = import_(cache, file, now=clock.now, skip_bad=True)
        assert (done.stored, done.present, done.bad) == (1, 1, 1)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("", "is no export"),
        ('{"prompt": "x"}', "is no export"),
        ('{"format": "penstock completions", "version": 2}', "has version 2; this Penstock reads version 1"),
    ],
)
def test_what_is_no_export_is_refused(tmp_path, clock, header, says):
    file = tmp_path / "file"
    file.write_text(header)
    with (
        opened_cache(tmp_path / "c.lmdb", max_bytes=CAP, create=True) as cache,
        pytest.raises(ConfigError, match=says),
    ):
        import_(cache, file, now=clock.now)


def test_embeddings_of_another_length_are_left_out(path, tmp_path, clock):
    fill(path, 5, clock)
    file, other = tmp_path / "out.jsonl", tmp_path / "other.lmdb"
    with opened_cache(path, max_bytes=CAP) as cache:
        export(cache, ALL, file)
    with CompletionCache(other) as cache:
        cache.open_index(DIMS + 1)
    with opened_cache(other, max_bytes=CAP) as cache:
        done = import_(cache, file, now=clock.now)
        assert (done.stored, done.unindexed) == (5, 5)
    with CompletionCache(other, clock=clock) as cache:
        assert cache.lookup(make_key(3)).completion == make_completion(3)
        assert cache.nearest(make_partition(), np.ones(DIMS + 1)) == []


def test_an_import_stops_at_the_cap_and_evicts_nothing(path, tmp_path, clock):
    fill(path, 1500, clock)
    file, other = tmp_path / "out.jsonl", tmp_path / "other.lmdb"
    with opened_cache(path, max_bytes=CAP) as cache:
        export(cache, ALL, file)
    with (
        opened_cache(other, max_bytes=1 << 20, create=True) as cache,
        pytest.raises(PenstockError, match=r"of at most 1048576; \d+ entries were imported so far. Raise"),
    ):
        import_(cache, file, now=clock.now)
    with opened_cache(other, max_bytes=CAP) as cache:
        already = len(list(cache.entries()))
        assert 256 <= already < 1500
        assert import_(cache, file, now=clock.now).stored == 1500 - already


def test_no_file_is_overwritten(path, tmp_path, clock):
    fill(path, 3, clock)
    file = tmp_path / "there"
    file.write_text("mine")
    with opened_cache(path, max_bytes=CAP) as cache:
        with pytest.raises(ConfigError, match="there exists already"):
            export(cache, ALL, file)
        with pytest.raises(ConfigError, match="is not empty"):
            backup(cache, tmp_path)
        with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
            export(cache, ALL, file / "inside")
    assert file.read_text() == "mine"


def test_a_backup_is_a_cache_without_what_was_freed(path, tmp_path, clock):
    fill(path, 2000, clock)
    copy = tmp_path / "deep" / "copy"
    with opened_cache(path, max_bytes=CAP) as cache:
        purge(cache, Selection(created_before=clock.now - 500))
        file_bytes = cache.environment.measure()[2]
        copied = backup(cache, copy)
    assert copied == (copy / "data.mdb").stat().st_size < file_bytes / 2
    assert stat.S_IMODE((copy / "data.mdb").stat().st_mode) == 0o600
    assert looked_at(copy, clock.now).entries == 501
    assert_sound(copy, 51)


def explained(cache: OpenedCache, number: int, tenant: str = "acme"):
    return neighbours(cache, make_partition(tenant), make_embedding(number), k=3, now=1.7e9)


def test_partitions_are_known_by_their_entries(path, clock):
    fill(path, 30, clock)
    fill(path, 9, clock, tenant="bolt")
    with opened_cache(path, max_bytes=CAP) as cache:
        acme, bolt = partitions(cache)
        assert (acme.name, acme.entries, bolt.name, bolt.entries) == (
            make_partition(),
            27,
            make_partition("bolt"),
            9,
        )
        assert [one.name for one in partitions(cache, tenant_hash("bolt"))] == [bolt.name]
        assert acme.sample == make_question(0)
        assert acme.was_embedded_by(make_embedding(0)) and not acme.was_embedded_by(make_embedding(1))
        purge(cache, Selection(tenant=tenant_hash("acme")))
        assert [one.name for one in partitions(cache)] == [make_partition("bolt")]


def test_a_verdict_says_why(path, clock):
    fill(path, 9, clock)
    with opened_cache(path, max_bytes=CAP) as cache:
        nearest, second, _ = explained(cache, 4)
    assert nearest.question == make_question(4) and nearest.completion == make_completion(4)
    rules = {"mode": "draft", "draft_similarity": 0.8}
    good = verdict("question 4", nearest, rank=0, **rules)
    assert good.rung == "draft" and "reaches cache_similarity 0.8" in good.reasons[0]
    assert "the same words" in good.reasons[1]
    assert len(verdict("something else", nearest, rank=0, **rules).reasons) == 1
    far = verdict("question 4", second, rank=1, **rules)
    assert far.rung == "none" and "is below cache_similarity 0.8" in far.reasons[0]
    assert far.reasons[1] == "only the nearest is taken"
    off = verdict("question 4", nearest, rank=0, mode="off", draft_similarity=0.8)
    assert off == type(off)("none", ("cache_mode is off",))
    guarded = verdict("question 5", nearest, rank=0, mode="trusted", draft_similarity=0.8)
    assert (
        guarded.rung == "draft" and "never served unverified: the questions differ (" in guarded.reasons[-1]
    )
    trusting = {"mode": "trusted", "draft_similarity": 0.8, "guards": "none"}
    untaught = verdict("question 5", nearest, rank=0, **trusting)
    assert untaught.rung == "draft" and len(untaught.reasons) == 1
    taught = verdict("question 5", nearest, rank=0, learnt=Learnt(True, "learnt so"), **trusting)
    assert taught.rung == "trusted" and taught.reasons[-1] == "learnt so"


def test_what_is_over_is_no_neighbour(path, clock):
    fill(path, 5, clock, ttl=100)
    with opened_cache(path, max_bytes=CAP) as cache:
        found = neighbours(cache, make_partition(), make_embedding(1), k=5, now=clock.now)
        assert len(found) == 5
        assert neighbours(cache, make_partition(), make_embedding(1), k=5, now=clock.now + 100) == []
