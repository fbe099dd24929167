"""Several processes, one folder: nothing is admitted twice, and what a killed process held comes back."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from tenant_worker import Worker

from penstock.errors import BudgetExceededError, RateLimitError
from penstock.proxy.tenants.ledger import UNKNOWN_MODEL
from penstock.proxy.tenants.spend import Spend


@pytest.fixture
def workers(place) -> Iterator[list[Worker]]:
    place.make()
    both = [Worker(place.path, place.clock.now) for _ in range(2)]
    yield both
    for worker in both:
        worker.kill()


def at_once(workers: list[Worker], **command) -> list:
    """Of both, at the same time."""
    for worker in workers:
        worker.send(**command)
    return [worker.answer() for worker in workers]


def test_two_processes_with_two_hundred_requests_each_take_no_more_than_there_is(place, workers):
    """The clock stands still, so that nothing refills: the counts are exact."""
    counts = []
    for number, (limits, each, exact) in enumerate(
        (
            ({"rpm": 150}, {}, 150),
            ({"tpm": 10_000}, {"tokens": 100}, 100),
            ({"concurrency": 70}, {}, 70),
            ({"budget": 1.0}, {"cost": 0.0078125}, 128),
            ({"rpm": 399, "tpm": 39_000, "concurrency": 397}, {"tokens": 100}, 390),
        )
    ):
        tenant = place.make(f"t{number}", **limits)
        counts.append(at_once(workers, tenant=tenant.name, admit=200, at=time.time() + 0.05, **each))
        assert sum(counts[-1]) == exact == place.store.counters.standing(tenant).running, limits
        at_once(
            workers,
            tenant=tenant.name,
            settle={"prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0},
        )
        assert place.store.counters.standing(tenant).held == {}
    assert any(min(both) > 0 for both in counts), "they were at it at the same time"


def test_places_that_come_and_go_are_never_more_than_allowed(place, workers):
    tenant = place.make(concurrency=5)
    figures = at_once(workers, spin=50)
    assert max(one["most"] for one in figures) <= 5
    assert sum(one["admitted"] + one["refused"] for one in figures) == 2000
    admitted = sum(one["admitted"] for one in figures)
    assert admitted >= 5
    standing = place.store.counters.standing(tenant)
    assert standing.held == {}
    (line,) = place.store.counters.lines("acme")
    assert (line.account.requests, line.account.prompt_tokens) == (admitted, admitted)


async def test_what_has_ended_in_one_process_is_free_in_another_before_the_first_waits(place, workers):
    """Settled together, and once: with the next request here, or else before the event loop waits."""
    tenants = [place.make(f"t{number}", concurrency=3, budget=1.0) for number in range(2)]
    for ended in (1, 3):
        for tenant in tenants:
            admissions = [place.admit(tenant, cost=0.25) for _ in range(3)]
            for admission in admissions[:ended]:
                admission.call("m").settle(Spend(model="m", prompt_tokens=1, completion_tokens=2, cost=0.0))
                admission.close()
            if ended < 3:
                admissions.append(place.admit(tenant, cost=0.25))
                with pytest.raises(RateLimitError):
                    place.admit(tenant, cost=0.0)
                for admission in admissions:
                    admission.close()
        await asyncio.sleep(0)
        for worker, tenant in zip(workers, tenants, strict=True):
            assert worker.ask(admit=9, cost=0.25, tenant=tenant.name) == 3
            assert worker.ask(settle={"cost": 0.0, "prompt_tokens": 0, "completion_tokens": 0}) == 3
    for tenant in tenants:
        (line,) = place.store.counters.lines(tenant.name)
        assert (line.account.requests, line.account.completion_tokens) == (4 + 6, 8)
        assert place.store.counters.standing(tenant).held == {}


def test_what_a_killed_process_held_comes_back_and_is_unknown(place, workers):
    tenant = place.make(concurrency=5, budget=1.0, window="total")
    first, second = workers
    assert first.ask(admit=9, cost=0.0625) == 5
    assert second.ask(admit=9, cost=0.0625) == 0
    with pytest.raises(RateLimitError):
        place.admit(tenant, cost=0.0625)
    first.kill()
    place.store.counters._seen_alive.clear()  # as after a second
    kept = place.admit(tenant, cost=0.0625)
    (line,) = place.store.counters.lines("acme")
    account = line.account
    assert line.model == UNKNOWN_MODEL
    assert (account.requests, account.unknown_usage, account.unknown_cost) == (5, 5, 5)
    assert account.cost == 0 and account.presumed_cost == 5 * 0.0625, "nobody knows what they took"
    kept.close()
    with pytest.raises(BudgetExceededError, match=r"has spent 0\.3125"):
        place.admit(tenant, cost=0.75)


def test_what_was_settled_survives_a_kill(place, workers):
    place.make()
    first, second = workers
    first.ask(admit=3, tokens=10)
    assert first.ask(settle={"prompt_tokens": 7, "completion_tokens": 3, "cost": 0.5}) == 3
    first.kill()
    second.ask(admit=1)
    second.ask(settle={"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.5})
    (line,) = place.store.counters.lines("acme")
    assert (line.account.requests, line.account.prompt_tokens, line.account.cost) == (4, 22, 2.0)


def test_a_key_holds_and_ends_in_every_process_at_once(place, workers):
    worker = workers[0]
    key = place.store.directory.create_key("acme")
    assert worker.ask(find=key.text) == "acme"
    place.store.directory.revoke_key(key.id)
    assert "has ended" in worker.ask(find=key.text)
