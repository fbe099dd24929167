"""Whom to ask first, and whom next."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.proxy.routing.plan import Candidate, Plan, Policy, plan
from penstock.proxy.routing.target import RemoteTarget
from penstock.tables import UpstreamModel

POLICIES: list[Policy] = ["fixed", "weighted", "cheapest"]


def candidate(
    name: str, *, healthy: bool = True, cost: float | None = None, weight: float = 1.0
) -> Candidate:
    return Candidate(RemoteTarget(name, "m", UpstreamModel()), healthy, cost, weight)


def order(made: Plan) -> str:
    return "".join(target.name.split("/")[0] for target in made.targets)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = [
        candidate(
            name,
            healthy=draw(st.booleans()),
            cost=draw(st.none() | st.floats(0, 10)),
            weight=draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        )
        for name in "abcdef"[: draw(st.integers(1, 6))]
    ]
    return found if any(one.weight for one in found) else [candidate("a")]


@given(candidates(), st.sampled_from(POLICIES), st.floats(0, 1, exclude_max=True))
def test_every_target_is_asked_once_and_the_healthy_ones_first(
    given_: list[Candidate], policy: Policy, draw: float
) -> None:
    made = plan(policy, given_, draw)
    assert sorted(order(made)) == sorted(one.target.name.split("/")[0] for one in given_)
    health = {one.target.name: one.healthy for one in given_}
    asked = [health[target.name] for target in made.targets]
    assert asked == sorted(asked, reverse=True)
    assert (made.reason == "nothing_healthy") == (not any(health.values()))


def test_fixed_keeps_the_order() -> None:
    given_ = [candidate("a", healthy=False), candidate("b"), candidate("c")]
    assert (order(plan("fixed", given_, 0.5)), plan("fixed", given_, 0.5).reason) == ("bca", "first_healthy")
    assert plan("fixed", given_[1:], 0.5).reason == "first"


def test_cheapest_takes_unknown_costs_as_the_highest() -> None:
    given_ = [candidate("a"), candidate("b", cost=2.0), candidate("c", cost=0.0), candidate("d", cost=2.0)]
    assert order(plan("cheapest", given_, 0.0)) == "cbda"


@pytest.mark.parametrize("down", [False, True])
def test_weighted_keeps_the_proportions_also_when_one_is_down(down: bool) -> None:
    given_ = [
        candidate("a", weight=3.0),
        candidate("b", weight=1.0),
        candidate("c", weight=4.0, healthy=not down),
        candidate("d", weight=0.0),
    ]
    first = Counter(order(plan("weighted", given_, number / 800))[0] for number in range(800))
    assert first == ({"a": 600, "b": 200} if down else {"a": 300, "b": 100, "c": 400})


def test_weighted_asks_the_others_by_weight() -> None:
    given_ = [candidate("a", weight=1.0), candidate("b", weight=3.0), candidate("c", weight=2.0)]
    assert order(plan("weighted", given_, 0.0)) == "abc"
