"""The policies in use: what is learnt while one is made anew, by other processes, of evicted families, on a closed cache."""

import asyncio
import gc
import math
import threading
from collections.abc import Callable

import pytest

from penstock.cache import CompletionCache
from penstock.cache.trust import keeper as keeper_file
from penstock.cache.trust.features import Features
from penstock.cache.trust.keeper import TrustKeeper
from penstock.cache.trust.policy import Observation, Reason, TrustPolicy
from penstock.cache.trust.ruling import Candidate
from penstock.cache.values import Neighbour

ACME, BOLT = b"a" * 24, b"b" * 24
NEIGHBOUR: Neighbour = None  # type: ignore[assignment]  # the keeper hands it on, unseen


def candidate(entry: int, cosine: float = 0.97) -> Candidate:
    numbers = (cosine, -math.log(1.02 - cosine), 0.5, 0.5, 0.5, 1.0, 1.0, 0.2, 0.0)
    return Candidate(NEIGHBOUR, None, Observation(entry, Features(numbers)))


def teach(cache: CompletionCache, family: bytes, entries: range) -> None:
    """What another process has verified: always the same answer."""
    policy = TrustPolicy(0.2)
    for number in entries:
        observation = candidate(number * 0x9E3779B97F4A7C15 % 2**64, 0.9 + number % 100 / 1000).observation
        assert observation is not None
        cache.note_label(family, policy.learn(policy.decide(observation, 1.0), True, 1e9 + number))
    cache.flush()


async def verified(keeper: TrustKeeper, family: bytes, entry: int) -> int:
    """How often the entry was verified to be right, as far as the keeper knows."""
    decision = (await keeper.rule(family, candidate(entry))).decision
    assert decision is not None
    return round(math.expm1(decision.values[-4]))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


@pytest.fixture
def always_asking(monkeypatch):
    monkeypatch.setattr(keeper_file, "REFRESH_SECONDS", 0.0)


async def test_a_failure_during_a_refresh_holds_and_no_label_is_lost(open_cache, always_asking, monkeypatch):
    cache = open_cache()
    teach(cache, ACME, range(1, 301))
    keeper = TrustKeeper(cache, max_error_rate=0.2)
    ruling = await keeper.rule(ACME, candidate(7), may_serve=False)
    assert ruling.reason == Reason.SERVABLE and not ruling.trusted

    teach(cache, ACME, range(301, 302))
    read, reading, going_on = cache.labels, threading.Event(), threading.Event()

    def slowly(family: bytes, since: int = 0) -> tuple[bytes, int]:
        found = read(family, since)
        reading.set()
        assert going_on.wait(10)
        return found

    monkeypatch.setattr(cache, "labels", slowly)
    await keeper.rule(ACME, candidate(7))  # begins a refresh
    await until(reading.is_set)
    for _ in range(60):
        keeper.learn(ACME, ruling, same=False)
    going_on.set()
    entry = 301 * 0x9E3779B97F4A7C15 % 2**64
    for _ in range(2000):
        if await verified(keeper, ACME, entry):
            break
        await asyncio.sleep(0.005)
    assert await verified(keeper, ACME, entry) == 1
    looks_alike = await keeper.rule(ACME, candidate(8), may_serve=False)
    assert looks_alike.reason != Reason.SERVABLE, (
        "60 of 361 such were wrong, 20 % at most are allowed at 95 %"
    )


async def test_only_labels_of_others_make_a_policy_anew(open_cache, always_asking, monkeypatch):
    cache, made = open_cache(), []
    refit = TrustPolicy.refit
    monkeypatch.setattr(TrustPolicy, "refit", lambda policy: (made.append(policy), refit(policy))[1])
    keeper = TrustKeeper(cache)
    for number in range(5):
        keeper.learn(ACME, await keeper.rule(ACME, candidate(number)), same=True)
    cache.flush()
    for _ in range(5):
        assert await verified(keeper, ACME, 3) == 1
        await asyncio.sleep(0.02)
    assert not made
    teach(cache, ACME, range(9, 10))
    await keeper.rule(ACME, candidate(3))
    await until(lambda: bool(made))
    assert await verified(keeper, ACME, 3) == 1, "once, though the log tells of it again"


async def test_a_label_of_an_evicted_family_is_kept(open_cache, monkeypatch):
    monkeypatch.setattr(keeper_file, "MAX_FAMILIES", 1)
    cache = open_cache()
    keeper = TrustKeeper(cache)
    ruling = await keeper.rule(ACME, candidate(7))
    await keeper.rule(BOLT, candidate(7))
    keeper.learn(ACME, ruling, same=True)
    cache.flush()
    assert cache.labels(ACME)[1] == 1
    assert await verified(keeper, ACME, 7) == 1


async def test_a_closed_cache_leaves_nothing_behind(open_cache):
    cache, complaints = open_cache(), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    keeper = TrustKeeper(cache)
    cache.close()
    assert (await keeper.rule(ACME, candidate(7))).reason == Reason.COLD
    await asyncio.sleep(0.05)
    del keeper
    gc.collect()
    assert complaints == []
