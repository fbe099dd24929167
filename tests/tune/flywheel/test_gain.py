"""What is expected of timings and a router, and when a check undoes it."""

import pytest
from simulated_tiers import SimulatedTiers

from penstock.compress.texts import Example
from penstock.tune.flywheel.check import Checked, checked
from penstock.tune.flywheel.gain import (
    GUESSED,
    GUESSED_DRAFTED,
    LARGE,
    LARGE_DRAFTED,
    SMALL,
    Timings,
    options,
)
from penstock.tune.flywheel.routing import make_router
from penstock.tune.flywheel.timing import Run
from penstock.tune.router.answers import Answer
from penstock.tune.router.collect import LARGE as LARGE_KIND
from penstock.tune.router.collect import SMALL as SMALL_KIND
from penstock.tune.router.learn import learn
from penstock.tune.router.rows import split
from penstock.tune.router.workload import Item


def runs(*seconds, texts=("a",), models=("large",)):
    return [Run(one, [*texts], [*models]) for one in seconds]


def timings(**changed):
    seconds = {LARGE: 10.0, GUESSED: 10.0, SMALL: 2.0, LARGE_DRAFTED: 8.0, GUESSED_DRAFTED: 7.0} | changed
    return Timings.of({name: runs(value, value * 1.5, value * 0.9) for name, value in seconds.items()})


@pytest.fixture(scope="module")
def policies():
    rows = SimulatedTiers(0, telling=2.0).rows(1500)
    return learn(split(rows, 0), buffers=[0], qualities=[0.8, 0.9], delta=0.05).policies


def test_the_student_guesses_where_that_saves_more_than_chance():
    assert not timings(guessed=9.6).guesses
    found = timings(guessed=9.0)
    assert found.guesses and (found.large, found.main, found.escalated, found.small) == (10, 9, 7, 2)
    (drafts,) = options(found, [], 0.9)
    assert drafts.policy == "drafts" and drafts.cost == drafts.low == pytest.approx(0.9)


def test_a_router_is_worth_what_it_saves_besides(policies):
    cascade = next(policy for policy in policies if policy.cascade)
    promise = next(p for p in cascade.promises if p.threshold.quality == 0.9)
    plain = next(one for one in options(timings(), policies, 0.9) if one.policy == "cascade")
    assert (plain.cost, plain.kept) == (
        promise.cost.value,
        promise.kept,
    ) and plain.low < plain.cost < plain.high
    found = options(timings(guessed=9.0), policies, 0.9)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    costs = {one.policy: one.cost for one in found}
    assert costs["cascade"] == pytest.approx(0.9 * plain.cost) and "drafts" in costs


def test_nothing_is_left_of_a_promise_that_no_router_keeps(policies):
    assert options(timings(), policies, 0.999) == options(timings(), [], 0.9) == []


def test_advice_is_of_the_promise_that_is_asked_for():
    replies = {SMALL_KIND: "`ls`", LARGE_KIND: "`ls`"}
    answers, items = {}, []
    for place in range(400):
        hard, text = place % 3 == 0, f"list {chr(97 + place % 26)}{chr(97 + place // 26)}"
        items.append(Item(Example(messages=({"role": "user", "content": text},))))
        for kind, reply in replies.items():
            # What the student gets wrong, it is not sure of.
            said = "`rm`" if hard and kind == SMALL_KIND else reply
            chosen = (-2.0 if hard else -0.1,) * 8
            best = tuple((one, -3.0) for one in chosen)
            answers[place, kind] = Answer(
                place, kind, said, finished=True, completion_tokens=8, chosen=chosen, best=best
            )
    how = {"score": "command", "delta": 0.05, "max_tokens": 8, "concurrency": 1, "seed": 0}
    router = make_router("s", "l", items, answers, timings(), list(range(64)), quality=0.9, **how)
    (first, *_) = router.advice(0.9)
    assert (
        first.startswith("**cascade: recommended**, with `quality = 0.9`: ")
        and "come from the student" in first
    )
    (cheapest, *_) = options(timings(), router.policies, 0.9)
    # Two thirds are kept; the others cost the student's answer and 0.8 of the model's.
    assert cheapest.policy == "cascade" and cheapest.cost == pytest.approx(0.2 + 0.8 / 3, abs=0.05)
    dear = make_router("s", "l", items, answers, timings(small=12.0), list(range(64)), quality=0.9, **how)
    assert dear.policies == [] and "costs 1.20 times one of the large tier" in dear.advice(0.9)[0]


def test_a_check_counts_who_answered_and_what_says_the_same():
    now = runs(10.0, 12.0, 11.0, texts=("a", "b", "c", "d"), models=["large"] * 4)
    new = runs(5.0, 5.5, 6.0, texts=("a", "b", "x", "d"), models=["small", "small", "small", "large"])
    found = checked(now, new, "small", lambda one, other: one == other)
    assert (found.questions, found.now, found.new, found.cheaper) == (4, 11 / 4, 5.5 / 4, 2.0)
    assert (found.kept, found.different) == (0.75, 1)
    assert found.noise == pytest.approx(2 / 11)
    assert found.objection(0.9) is None  # one of four is no proof


@pytest.mark.parametrize(
    ("different", "new", "says"),
    [
        (0, 0.5, None),
        (14, 0.5, None),
        (40, 0.5, "40 of 200 answers say something else, too many for the promise 0.95"),
        (0, 1.1, "an answer costs 1.10 times what it does now"),
        (0, 0.97, "an answer costs 0.97 times what it does now"),
    ],
)
def test_what_a_check_undoes(different, new, says):
    objection = Checked(200, 1.0, new, 0.05, 0.5, different).objection(0.95)
    assert objection is None if says is None else says in objection
