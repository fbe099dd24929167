"""What requests took, and what nobody knows."""

import pytest

from penstock.proxy.tenants.admission import Admission
from penstock.proxy.tenants.ledger import Account, Saved
from penstock.proxy.tenants.spend import Prices, Saving, Spend, cost
from penstock.proxy.tenants.standing import Ask
from penstock.proxy.tenants.tenant import Tenant

CLOUD = Prices(input=2.0, cached_input=0.5, output=8.0)
OWN = Prices(per_engine_second=0.25)
KNOWN = {"prompt_tokens": 1000, "cached_tokens": 400, "completion_tokens": 100, "engine_seconds": 2.0}


@pytest.mark.parametrize(
    ("prices", "money"),
    [
        (CLOUD, (600 * 2 + 400 * 0.5 + 100 * 8) / 1e6),
        (Prices(input=2.0, output=8.0), (1000 * 2 + 100 * 8) / 1e6),
        (OWN, 0.5),
        (Prices(input=0.0, output=0.0), 0.0),
        (Prices(input=2.0), None),
        (Prices(input=2.0, output=8.0, per_engine_second=0.25), 0.5 + (1000 * 2 + 100 * 8) / 1e6),
        (Prices(), None),
        (None, None),
    ],
)
def test_what_tokens_and_seconds_cost(prices, money):
    assert cost(prices, **KNOWN) == (None if money is None else pytest.approx(money))


@pytest.mark.parametrize(
    ("prices", "needed"),
    [
        (CLOUD, ("prompt_tokens", "cached_tokens", "completion_tokens")),
        (Prices(input=2.0, output=0.0), ("prompt_tokens",)),
        (OWN, ("engine_seconds",)),
    ],
)
def test_what_has_a_price_must_be_known(prices, needed):
    for name in KNOWN:
        assert (cost(prices, **{**KNOWN, name: None}) is None) == (name in needed)


def test_what_there_is_none_of_needs_no_price():
    assert cost(Prices(input=2.0), prompt_tokens=1000, completion_tokens=0) == pytest.approx(0.002)
    assert cost(Prices(per_engine_second=0.0)) == 0


def test_an_account_adds_what_is_known_and_counts_what_is_not(place):
    tenant = place.make()
    for spend in (
        Spend(
            model="m",
            prompt_tokens=10,
            cached_tokens=4,
            completion_tokens=5,
            cost=0.25,
            engine_seconds=1.5,
            savings=(Saving("routing", cost=0.5), Saving("speculation", seconds=2.0)),
        ),
        Spend(model="m", prompt_tokens=7),
        Spend(
            model="m",
            prompt_tokens=1,
            completion_tokens=1,
            cost=0.0,
            savings=(Saving("cache", 0.125, 3.0),),
            reused=True,
        ),
    ):
        with place.admit(tenant, tokens=3, cost=0.125) as admission:
            admission.call("m").settle(spend)
    (line,) = place.store.counters.lines("acme")
    assert line.account == Account(
        requests=3,
        reused=1,
        unknown_usage=1,
        unknown_cost=1,
        prompt_tokens=18,
        cached_tokens=4,
        completion_tokens=6,
        cost=0.25,
        presumed_cost=0.125,
        engine_seconds=1.5,
        saved={"routing": Saved(0.5, 0.0), "speculation": Saved(0.0, 2.0), "cache": Saved(0.125, 3.0)},
    )


def test_every_call_of_a_request_is_its_models(place):
    with place.admit(place.make(budget=1.0), cost=0.5) as admission:
        admission.call("m").settle(Spend(model="first", prompt_tokens=3, cost=0.125))
        admission.call("m").settle(Spend(model="second", prompt_tokens=3, completion_tokens=4))
    lines = {line.model: line.account for line in place.store.counters.lines("acme")}
    assert lines["first"].cost == 0.125 and lines["first"].unknown_usage == 1
    assert lines["second"].presumed_cost == 0.375, "what is left of what was reserved"
    assert place.store.counters.standing(place.make(budget=1.0)).spent == 0.5


def test_lines_are_by_tenant_day_and_model(place):
    for name in ("acme", "acme2", "bolt"):
        tenant = place.make(name)
        for _day in range(3):
            for model in ("m", "ü" * 400):
                with place.admit(tenant) as admission:
                    admission.call("m").settle(
                        Spend(model=model, prompt_tokens=1, completion_tokens=1, cost=0.0)
                    )
            place.clock.now += 86400
    counters, today = place.store.counters, int(place.clock.now // 86400)
    assert {line.tenant for line in counters.lines("acme")} == {"acme"}
    assert len(counters.lines()) == 18
    assert [line.tenant for line in counters.lines(since_day=today - 2)] == ["bolt"] * 4
    assert len(counters.lines("bolt", today - 1)) == 2


def test_the_cost_of_a_request_is_unknown_while_one_of_its_calls_runs():
    admission = Admission(Tenant(name="acme"), Ask(tokens=0, cost=0.0), None, None)
    with admission:
        small, large, refused = (admission.call(name) for name in ("small", "large", "refused"))
        refused.refused()
        small.settle(Spend(model="small", cost=0.25))
        assert admission.cost is None
        large.settle(Spend(model="large", cost=0.5))
        assert admission.cost == 0.75
    assert admission.cost == 0.75


def test_what_was_saved_is_unknown_where_the_cost_is():
    """As of a small tier that was asked for nothing, before a large one without a price."""
    admission = Admission(Tenant(name="acme"), Ask(tokens=0, cost=0.0), None, None)
    known = Saving("routing", cost=-0.25, seconds=-2.0)
    admission.call("small").settle(Spend(model="small", cost=0.25, savings=(known,)))
    assert admission.savings == (known,)
    admission.call("unpriced").settle(Spend(model="unpriced", prompt_tokens=7))
    assert admission.savings == (Saving("routing", seconds=-2.0),)
