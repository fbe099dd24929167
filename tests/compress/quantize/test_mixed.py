"""The choice of precisions under a budget."""

import random

from penstock.compress.quantize.mixed import Group, choose
from penstock.compress.quantize.precision import Precision
from penstock.compress.quantize.sensitivity import Cost

FOUR, EIGHT, INTEGERS = Precision("w4a16", 32), Precision("w8a16"), Precision("w8a8")
STORED: dict[Group, int] = {("a",): 200, ("b", "c"): 400}
COSTS = [
    Cost(("a",), EIGHT, 0.001, 100),
    Cost(("a",), FOUR, 0.010, 50),
    Cost(("b", "c"), EIGHT, 0.001, 200),
    Cost(("b", "c"), FOUR, 0.004, 100),
]


def test_without_a_budget_all_stays_as_stored() -> None:
    assert choose(COSTS, STORED, 0.0) == {("a",): None, ("b", "c"): None}


def test_with_enough_of_it_all_takes_the_fewest_bytes() -> None:
    assert choose(COSTS, STORED, 1.0) == {("a",): FOUR, ("b", "c"): FOUR}


def test_the_budget_goes_where_a_byte_costs_least() -> None:
    assert choose(COSTS, STORED, 0.001) == {("a",): None, ("b", "c"): EIGHT}
    assert choose(COSTS, STORED, 0.005) == {("a",): EIGHT, ("b", "c"): FOUR}


def test_what_costs_nothing_is_taken_at_any_budget() -> None:
    better = [Cost(("a",), FOUR, -0.0001, 50)]
    assert choose(better, {("a",): 200}, 0.0) == {("a",): FOUR}


def test_costs_never_exceed_the_budget_and_more_of_it_never_takes_more_bytes() -> None:
    rng = random.Random(5)
    stored: dict[Group, int] = {(f"{number}",): 1000 for number in range(12)}
    costs = []
    for group in stored:
        eight = rng.random() * 0.001
        costs += [Cost(group, EIGHT, eight, 500), Cost(group, FOUR, eight + rng.random() * 0.01, 250)]
    known = {(cost.layers, cost.precision): cost for cost in costs}
    before = 12_000
    for budget in (0.0, 0.001, 0.003, 0.01, 0.03, 0.1):
        chosen = [
            known[group, precision] for group, precision in choose(costs, stored, budget).items() if precision
        ]
        assert sum(cost.kl for cost in chosen) <= budget + 1e-12
        taken = sum(cost.bytes for cost in chosen) + 1000 * (12 - len(chosen))
        assert taken <= before
        before = taken


def test_of_two_that_take_the_same_bytes_integers_are_taken_where_they_cost_little_more() -> None:
    four = Cost(("a",), FOUR, 0.01, 50)
    for kl, expected in ((0.0012, INTEGERS), (0.0045, EIGHT)):
        costs = [Cost(("a",), EIGHT, 0.001, 100), Cost(("a",), INTEGERS, kl, 100), four]
        assert choose(costs, {("a",): 200}, 0.004) == {("a",): expected}
    assert choose(costs, {("a",): 200}, 0.01) == {("a",): FOUR}
