"""What a tenant may take, when it gets it back, and what a refusal says."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BudgetExceededError, InvalidRequestError, ModelNotAllowedError, RateLimitError
from penstock.proxy.tenants.environment import StoreError
from penstock.proxy.tenants.rights import check_model, permitted_mode, permitted_urgency
from penstock.proxy.tenants.spend import Spend
from penstock.proxy.tenants.standing import Ask, Refusal, Standing, admitted, settled
from penstock.proxy.tenants.tenant import Limits, Tenant
from penstock.proxy.tenants.window import window_end, window_start
from penstock.scheduler.urgency import Urgency


def spend(prompt: int | None = 0, completion: int | None = 0, cost: float | None = 0.0, **more) -> Spend:
    return Spend(model="m", prompt_tokens=prompt, completion_tokens=completion, cost=cost, **more)


def test_requests_are_a_bucket_of_one_minute_that_refills(place):
    tenant = place.make(rpm=6)
    for left in (5, 4, 3, 2, 1, 0):
        headers = place.admit(tenant).headers
        assert headers["x-ratelimit-remaining-requests"] == str(left)
    assert headers["x-ratelimit-limit-requests"] == "6" and headers["x-ratelimit-reset-requests"] == "1m0s"
    with pytest.raises(RateLimitError, match=r"acme has 6 requests a minute .* in 10 s") as refused:
        place.admit(tenant)
    assert refused.value.retry_after == pytest.approx(10)
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    place.clock.now += refused.value.retry_after
    place.admit(tenant)
    with pytest.raises(RateLimitError):
        place.admit(tenant)


def test_an_estimate_of_tokens_gives_way_to_the_truth(place):
    tenant = place.make(tpm=1000)
    first = place.admit(tenant, tokens=900)
    with pytest.raises(
        RateLimitError, match=r"1000 tokens a minute \(tpm\), 900 of which are taken"
    ) as refused:
        place.admit(tenant, tokens=200)
    assert refused.value.retry_after == pytest.approx(6)
    first.call("m").settle(spend(100, 50))
    first.close()
    place.admit(tenant, tokens=850)
    with pytest.raises(RateLimitError):
        place.admit(tenant, tokens=1)


def test_more_than_was_expected_is_a_debt(place):
    tenant = place.make(tpm=600)
    with place.admit(tenant, tokens=10) as admission:
        admission.call("m").settle(spend(1000, 200))
    with pytest.raises(RateLimitError) as refused:
        place.admit(tenant, tokens=10)
    assert refused.value.retry_after == pytest.approx(61)


def test_tokens_nobody_counted_stay_charged_as_estimated(place):
    tenant = place.make(tpm=100)
    with place.admit(tenant, tokens=70) as admission:
        admission.call("m").close()
    with pytest.raises(RateLimitError):
        place.admit(tenant, tokens=31)
    place.admit(tenant, tokens=30)


def test_an_answer_from_the_cache_costs_a_request_but_no_tokens(place):
    tenant = place.make(tpm=100, rpm=2)
    with place.admit(tenant, tokens=90) as admission:
        admission.call("m").settle(spend(80, 10, reused=True))
    place.admit(tenant, tokens=100)
    with pytest.raises(RateLimitError, match="rpm"):
        place.admit(tenant)


def test_what_can_never_fit_is_refused_without_a_promise(place):
    with pytest.raises(RateLimitError, match=r"may take 1001 tokens; .*will never be admitted") as refused:
        place.admit(place.make(tpm=1000), tokens=1001)
    assert refused.value.retry_after is None


def test_places_come_free_with_the_end_of_a_request(place):
    tenant = place.make(concurrency=2)
    first, _ = place.admit(tenant), place.admit(tenant)
    with pytest.raises(RateLimitError, match=r"2 requests running; its limit is 2 at once"):
        place.admit(tenant)
    first.close()
    first.close()
    place.admit(tenant)
    with pytest.raises(RateLimitError):
        place.admit(tenant)


def test_what_cannot_be_written_is_written_later(place, monkeypatch, caplog):
    tenant = place.make(concurrency=1)
    counters = place.store.counters
    with monkeypatch.context() as broken:
        admission = place.admit(tenant)

        def disk_full():
            raise StoreError("No space left on device")

        broken.setattr(counters._env, "writing", disk_full)
        admission.call("m").settle(spend(prompt=7))
        admission.close()
    assert "cannot be written now" in caplog.text
    place.admit(tenant).close()
    (line,) = counters.lines(tenant.name)
    assert (line.account.requests, line.account.prompt_tokens) == (1, 7)


def test_a_budget_reserves_and_then_takes_the_truth(place):
    tenant = place.make(budget=1.0, window="day")
    first = place.admit(tenant, cost=0.75)
    with pytest.raises(
        BudgetExceededError, match=r"0\.75 is reserved .* may cost 0\.5; .* 2026-11-26 00:00 UTC"
    ):
        place.admit(tenant, cost=0.5)
    first.call("m").settle(spend(cost=0.25))
    first.close()
    with place.admit(tenant, cost=0.5) as second:
        second.call("m").settle(spend(cost=0.75))
    with pytest.raises(BudgetExceededError, match="has spent 1 of") as refused:
        place.admit(tenant, cost=0.001)
    assert refused.value.retry_after == 12 * 3600
    place.clock.now += 12 * 3600
    place.admit(tenant, cost=1.0)


def test_a_cost_nobody_knows_is_charged_as_reserved(place):
    tenant = place.make(budget=1.0, window="total")
    with place.admit(tenant, cost=0.75) as admission:
        admission.call("m").settle(spend(cost=None))
    with pytest.raises(
        BudgetExceededError, match=r"has spent 0\.75 of the whole budget.*does not end"
    ) as refused:
        place.admit(tenant, cost=0.5)
    assert refused.value.retry_after is None


def test_a_request_no_model_was_called_for_takes_no_tokens_and_no_money(place):
    tenant = place.make(budget=1.0, tpm=100, rpm=2)
    with place.admit(tenant, tokens=100, cost=1.0) as admission:
        admission.call("m").refused()
    place.admit(tenant, tokens=100, cost=1.0)
    assert place.store.counters.lines() == []


def test_a_budget_set_later_knows_what_was_spent_before(place):
    with place.admit(place.make(), cost=0.5) as admission:
        admission.call("m").settle(spend(cost=0.5))
    place.clock.now += 86400
    with place.admit(place.make(), cost=0.25) as admission:
        admission.call("m").settle(spend(cost=0.25))
    place.admit(place.make(budget=0.5, window="day"), cost=0.25).close()
    with pytest.raises(BudgetExceededError, match=r"has spent 0\.75 of this month's"):
        place.admit(place.make(budget=0.75), cost=0.25)
    with pytest.raises(BudgetExceededError, match=r"has spent 0\.25 of this day's"):
        place.admit(place.make(budget=0.25, window="day"), cost=0.25)


def test_a_budget_needs_a_price(place):
    with pytest.raises(ModelNotAllowedError, match="what the model 'm' costs is not known"):
        place.admit(place.make(budget=1.0))


def test_only_models_that_are_named(place):
    tenant = place.make(models=("m", "n"))
    check_model(tenant, ("route", "m"))
    with pytest.raises(ModelNotAllowedError, match="may not use the model 'x'; it may use: m, n"):
        check_model(tenant, ("x", "y"))


def test_a_request_ends_with_the_last_of_its_calls(place):
    """The first to ask for something may leave before those that it is shared with."""
    tenant = place.make(concurrency=1, tpm=100)
    with place.admit(tenant, tokens=10) as admission:
        call = admission.call("m")
    with pytest.raises(RateLimitError, match="running"):
        place.admit(tenant)
    call.settle(spend(40, 40))
    place.admit(tenant, tokens=20).close()
    late = admission.call("m")
    late.settle(spend(15, 0))
    place.admit(tenant, tokens=5).close()
    standing = place.store.counters.standing(tenant)
    assert (standing.tokens, standing.held) == (95, {})
    assert [line.account.requests for line in place.store.counters.lines()] == [2]


@pytest.mark.parametrize(("asked", "given"), [(0, 2), (2, 2), (5, 5), (1, None), (-3, None)])
def test_a_request_may_ask_for_less_priority_than_its_tenants(asked, given):
    tenant = Tenant(name="acme", priority=2)
    if given is None:
        with pytest.raises(InvalidRequestError, match=f"priority is {asked}; the best for tenant acme is 2"):
            permitted_urgency(tenant, Urgency(priority=asked))
    else:
        assert permitted_urgency(tenant, Urgency(priority=asked, deadline=3)) == Urgency(
            priority=given, deadline=3
        )


def test_the_least_of_what_server_request_and_tenant_say_of_the_cache():
    for allowed, mode in (("off", "off"), ("draft", "draft"), ("trusted", "trusted"), (None, "trusted")):
        assert permitted_mode(Tenant(name="acme", cache=allowed), "trusted") == mode
    assert permitted_mode(Tenant(name="acme", cache="trusted"), "off") == "off"


@pytest.mark.parametrize("name", ["rpm", "tpm", "concurrency", "budget"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_of_nothing_is_refused(name, value):
    with pytest.raises(InvalidRequestError, match=f"{name} is {value}; .*revoke its keys"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [{"priority": 10}, {"weight": 0.0}, {"weight": math.inf}, {"models": ()}, {"models": ("",)}],
)
def test_other_fields_are_checked(wrong):
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        Tenant(name="acme", **wrong)


def test_windows_are_those_of_utc():
    moment = datetime(2028, 2, 29, 23, 59, tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(window_start("day", moment), UTC) == datetime(2028, 2, 29, tzinfo=UTC)
    assert datetime.fromtimestamp(window_start("month", moment), UTC) == datetime(2028, 2, 1, tzinfo=UTC)
    for window in ("day", "month"):
        end = window_end(window, moment)
        assert end is not None and datetime.fromtimestamp(end, UTC) == datetime(2028, 3, 1, tzinfo=UTC)
    december = datetime(2026, 12, 5, tzinfo=UTC).timestamp()
    assert window_end("month", december) == datetime(2027, 1, 1, tzinfo=UTC).timestamp()


@given(
    st.lists(
        st.tuples(
            st.floats(0, 30),
            st.integers(0, 60),
            st.integers(0, 120),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_no_more_is_admitted_than_a_bucket_and_what_refills(steps):
    limits = Limits(rpm=5, tpm=100, concurrency=3)
    now, standing, running, requests, tokens = 0.0, Standing(), [], 0, 0
    for seconds, expected, truth, ends in steps:
        now += seconds
        if ends and running:
            ask = running.pop(0)
            standing = settled(standing, limits, ask, "p", now, tokens=truth, cost=0.0)
            continue
        ask = Ask(expected)
        decided = admitted(standing, limits, ask, "p", now, lambda _: 0.0)
        if isinstance(decided, Refusal):
            if decided.wait is not None and decided.limit != "concurrency":
                again = admitted(standing, limits, ask, "p", now + decided.wait, lambda _: 0.0)
                assert not isinstance(again, Refusal) or again.limit == "concurrency", "a wait is long enough"
                if decided.wait > 0.01:
                    early = admitted(standing, limits, ask, "p", now + decided.wait - 0.01, lambda _: 0.0)
                    assert isinstance(early, Refusal), "and no longer than it must be"
            continue
        standing = decided
        running.append(ask)
        requests, tokens = requests + 1, tokens + expected
        assert requests <= 5 + now * 5 / 60 + 1e-6
        assert len(running) == standing.running <= 3
        assert standing.tokens <= 100 + 1e-6
    for ask in running:
        standing = settled(standing, limits, ask, "p", now, tokens=ask.tokens, cost=0.0)
    assert standing.held == {}
