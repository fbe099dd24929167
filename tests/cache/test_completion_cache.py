"""One process and its cache: what is found, for how long, and what makes room."""

import logging
import math
import time

import msgspec
import pytest
from cache_worker import make_completion, make_key

from penstock.cache import CachedChoice, CachedCompletion, writer
from penstock.cache.record import body_key
from penstock.errors import ConfigError, PenstockError


def test_a_completion_comes_back_whole_queued_written_and_after_reopening(open_cache, clock):
    completion = CachedCompletion(
        [
            CachedChoice("naïve 🚰\0", [1, 2**31, 0], "stop", "\n\n", None),
            CachedChoice("", [], "length", 7, [(1, -0.25, [(1, -0.25), (2, -1.5)]), (2, -math.inf, [])]),
        ],
        prompt_tokens=12,
        engine_seconds=0.75,
    )
    cache = open_cache(clock=clock)
    assert cache.lookup(make_key(1)) is None
    cache.store(make_key(1), completion)
    assert cache.lookup(make_key(1)).completion == completion
    cache.flush()
    clock.now += 5
    assert cache.lookup(make_key(1)).completion == completion
    cache.close()
    hit = open_cache(clock=clock).lookup(make_key(1))
    assert hit.completion == completion
    assert hit.age == 5


def test_what_was_stored_is_not_changed_by_its_owner(open_cache):
    cache = open_cache()
    completion = make_completion(1)
    cache.store(make_key(1), completion)
    completion.choices.clear()
    cache.lookup(make_key(1)).completion.choices.clear()
    assert cache.lookup(make_key(1)).completion == make_completion(1)


def test_a_later_store_replaces(open_cache, clock):
    cache = open_cache(clock=clock)
    for number in (1, 2):
        cache.store(make_key(1), make_completion(number), ttl=10 * number)
        cache.flush()
        clock.now += 3
    assert cache.lookup(make_key(1)).completion == make_completion(2)
    assert cache.stats().entries == 1
    clock.now += 12  # past the first's end, before the second's
    cache.flush()
    assert cache.lookup(make_key(1)) is not None


def test_tenants_and_namespaces_do_not_see_each_other(open_cache):
    cache = open_cache()
    cache.store(make_key(1, "acme"), make_completion(1))
    cache.store(make_key(1, "acme", "apart"), make_completion(2))
    for _ in range(2):  # queued, then written
        assert cache.lookup(make_key(1, "bolt")) is None
        assert cache.lookup(make_key(1, "acme")).completion == make_completion(1)
        assert cache.lookup(make_key(1, "acme", "apart")).completion == make_completion(2)
        cache.flush()


def test_a_hash_collision_is_a_miss(open_cache):
    cache = open_cache()
    cache.store(make_key(1), make_completion(1))
    colliding = msgspec.structs.replace(make_key(2), place=make_key(1).place)
    for _ in range(2):
        assert cache.lookup(colliding) is None
        cache.flush()
    assert cache.stats().collisions == 2
    assert cache.lookup(make_key(1)) is not None


class TestTimeToLive:
    def test_an_entry_ends_at_its_time_queued_or_written(self, open_cache, clock):
        cache = open_cache(clock=clock, ttl=60)
        cache.store(make_key(1), make_completion(1))
        cache.store(make_key(2), make_completion(2), ttl=10)
        for flush in (False, True):
            if flush:
                clock.now -= 59.9
                cache.flush()
            clock.now += 9.9
            assert cache.lookup(make_key(2)) is not None
            clock.now += 0.1
            assert cache.lookup(make_key(2)) is None
            clock.now += 49.9
            assert cache.lookup(make_key(1)) is not None
        clock.now += 0.1
        assert cache.lookup(make_key(1)) is None

    def test_what_is_over_is_removed_unasked(self, open_cache, clock):
        cache = open_cache(clock=clock)
        for number in range(30):
            cache.store(make_key(number), make_completion(number), ttl=10 if number % 3 else None)
        cache.flush()
        clock.now += 10
        cache.flush()
        assert cache.stats().expired == 20
        assert cache.stats().entries == 10

    def test_any_time_is_accepted(self, open_cache, clock):
        cache = open_cache(clock=clock)
        for number, ttl in enumerate((1e-9, 1e15, 1e300, math.inf)):
            cache.store(make_key(number), make_completion(number), ttl=ttl)
        cache.flush()
        clock.now += 1e9
        cache.flush()
        assert [cache.lookup(make_key(number)) is not None for number in range(4)] == [
            False,
            True,
            True,
            True,
        ]
        assert (cache.stats().state, cache.stats().expired) == ("on", 1)

    def test_nothing_is_stored_for_no_time(self, open_cache):
        cache = open_cache()
        for ttl in (0, -1, math.nan):
            cache.store(make_key(1), make_completion(1), ttl=ttl)
        assert cache.lookup(make_key(1)) is None

    def test_a_clock_set_back_gives_no_negative_age(self, open_cache, clock):
        cache = open_cache(clock=clock)
        cache.store(make_key(1), make_completion(1))
        clock.now -= 100
        assert cache.lookup(make_key(1)).age == 0


class TestSizeCap:
    CAP = 1 << 20

    def fill(self, cache, clock, numbers, size=3000):
        for number in numbers:
            clock.now += 1
            cache.store(make_key(number), make_completion(number, size))
            cache.flush()

    def test_the_least_recently_used_go_first(self, open_cache, clock):
        cache = open_cache(clock=clock, max_bytes=self.CAP)
        self.fill(cache, clock, range(50))
        kept = range(0, 50, 5)
        for number in range(50, 200):
            for used in kept:
                clock.now += 1
                assert cache.lookup(make_key(used)) is not None, f"entry {used} went although it was used"
            self.fill(cache, clock, [number])
        stats = cache.stats()
        assert stats.evicted > 50
        assert stats.used_bytes <= self.CAP
        assert stats.used_bytes > self.CAP * 0.9
        present = [number for number in range(200) if cache.lookup(make_key(number)) is not None]
        unused = [number for number in present if number not in kept]
        assert unused == list(range(unused[0], 200)), "an older entry outlived a newer one, both unused"

    def test_the_file_stays_near_the_cap_while_entries_of_all_sizes_come_and_go(self, open_cache, clock):
        cache = open_cache(clock=clock, max_bytes=self.CAP)
        for number in range(3000):
            clock.now += 1
            cache.store(make_key(number), make_completion(number, 100 + number * 7919 % 9000))
            if number % 32 == 31:
                cache.flush()
        cache.flush()
        stats = cache.stats()
        assert stats.stored == 3000
        assert stats.used_bytes <= self.CAP
        assert stats.file_bytes < 3 * self.CAP

    def test_a_smaller_cap_at_reopening_is_kept(self, open_cache, clock):
        cache = open_cache(clock=clock, max_bytes=4 * self.CAP)
        self.fill(cache, clock, range(200))
        assert cache.stats().used_bytes > self.CAP
        cache.close()
        smaller = open_cache(clock=clock, max_bytes=self.CAP)
        smaller.flush()
        assert 0 < smaller.stats().used_bytes <= self.CAP
        assert smaller.lookup(make_key(199)) is not None
        assert smaller.lookup(make_key(0)) is None

    def test_uses_are_remembered_across_reopening(self, open_cache, clock):
        cache = open_cache(clock=clock, max_bytes=self.CAP)
        self.fill(cache, clock, range(20))
        clock.now += 1
        assert cache.lookup(make_key(0)) is not None
        cache.close()
        cache = open_cache(clock=clock, max_bytes=self.CAP)
        number = 20
        while not cache.stats().evicted:
            self.fill(cache, clock, [number])
            number += 1
        assert cache.lookup(make_key(0)) is not None
        assert cache.lookup(make_key(1)) is None

    def test_an_entry_larger_than_its_share_is_dropped(self, open_cache):
        cache = open_cache(max_bytes=self.CAP)
        cache.store(make_key(1), make_completion(1, self.CAP // 8))
        assert cache.lookup(make_key(1)) is None
        assert cache.stats().dropped == 1


def test_a_full_queue_drops_and_never_waits(open_cache, monkeypatch):
    monkeypatch.setattr(writer, "MAX_QUEUED", 8)
    monkeypatch.setattr(writer, "LINGER_SECONDS", 60)
    cache = open_cache()
    start = time.perf_counter()
    for number in range(20):
        cache.store(make_key(number), make_completion(number))
    assert time.perf_counter() - start < 1
    assert (cache.stats().queued, cache.stats().dropped) == (8, 12)
    cache.flush()
    assert (cache.stats().queued, cache.stats().stored) == (0, 8)
    assert cache.lookup(make_key(7)) is not None
    assert cache.lookup(make_key(8)) is None


def test_the_queue_is_bounded_in_bytes_too(open_cache, monkeypatch):
    monkeypatch.setattr(writer, "MAX_QUEUED_BYTES", 8000)
    monkeypatch.setattr(writer, "LINGER_SECONDS", 60)
    cache = open_cache()
    for _ in range(3):  # the same entry again takes no more room
        cache.store(make_key(1), make_completion(1, 3000))
    cache.store(make_key(2), make_completion(2, 3000))
    assert (cache.stats().queued, cache.stats().dropped) == (1, 1)


def test_stores_reach_the_disk_unasked(open_cache):
    cache = open_cache()
    cache.store(make_key(1), make_completion(1))
    deadline = time.monotonic() + 5
    while cache.stats().entries == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_damaged_entry_is_a_miss_and_is_replaced(open_cache):
    cache = open_cache()
    cache.store(make_key(1), make_completion(1))
    cache.store(make_key(2), make_completion(2))
    cache.flush()
    with cache._env.write() as txn:
        record, body = cache._env.read(make_key(1).place)
        damaged = bytearray(body)
        damaged[len(body) // 2] ^= 1
        txn.put(body_key(record, make_key(1).place), bytes(damaged), db=cache._env.bodies)
        txn.put(make_key(2).place, b"short", db=cache._env.records)
    for number in (1, 2):
        assert cache.lookup(make_key(number)) is None
        cache.store(make_key(number), make_completion(number))
        cache.flush()
        assert cache.lookup(make_key(number)).completion == make_completion(number)
    assert cache.stats().damaged == 1
    assert cache.stats().entries == 2


def test_statistics(open_cache):
    cache = open_cache()
    cache.lookup(make_key(1))
    cache.store(make_key(1), make_completion(1))
    cache.lookup(make_key(1))
    cache.flush()
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.entries, stats.state) == (1, 1, 1, 1, "on")
    assert stats.file_bytes >= stats.used_bytes > 0


@pytest.mark.parametrize("settings", [{"max_bytes": 1000}, {"ttl": 0}, {"ttl": math.nan}])
def test_wrong_settings_are_refused_by_name(open_cache, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        open_cache(**settings)


def test_a_closed_cache_says_so(open_cache, caplog):
    cache = open_cache()
    cache.store(make_key(1), make_completion(1))
    cache.close()
    cache.close()
    for use in (
        lambda: cache.lookup(make_key(1)),
        lambda: cache.store(make_key(1), make_completion(1)),
        cache.flush,
    ):
        with pytest.raises(PenstockError, match="closed"):
            use()
    assert cache.stats().state == "closed"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with open_cache() as reopened:
        assert reopened.lookup(make_key(1)) is not None
