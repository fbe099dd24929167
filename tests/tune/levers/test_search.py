"""The search, on machines that are formulas: whether it finds what is cheapest within the limits, and what that takes."""

import math
import random

from penstock.tune.levers.catalogue import Served, space_of
from penstock.tune.levers.search import Limits, rungs, search
from penstock.tune.levers.trial import Loss, Trial

MODELS = [Served(f"m{number}", {"model": f"m{number}", "quantize": "auto"}) for number in range(5)]


class Formula:
    """Choices multiply the cost and add to the loss, and measuring is noisy: less so on more requests."""

    def __init__(self, space, seed, noise=0.05):
        rng = random.Random(seed)
        self.factors = [[1.0] + [rng.uniform(0.4, 1.2) for _ in lever.choices[1:]] for lever in space.levers]
        self.losses = [
            [0.0] + [rng.choice((0, 0, 0.002, 0.03)) for _ in lever.choices[1:]] for lever in space.levers
        ]
        self.rng, self.noise, self.requests = rng, noise, 0
        self.seen = {}

    def cost(self, point):
        return math.prod(row[number] for row, number in zip(self.factors, point, strict=True))

    def loss(self, point):
        return sum(row[number] for row, number in zip(self.losses, point, strict=True))

    def measure(self, point, count):
        if (point, count) in self.seen:
            return self.seen[point, count]
        self.requests += count
        spread = self.noise / math.sqrt(count / 40)
        cost = self.cost(point) * self.rng.gauss(1, spread)
        half = 0.3 / math.sqrt(count)
        loss = self.loss(point)
        if loss:
            loss += self.rng.gauss(0, half / 2)
        trial = Trial(point=point, requests=count, cost=cost, right=(True,) * count)
        self.seen[point, count] = trial, Loss(loss, loss - half, loss + half)
        return self.seen[point, count]


def test_it_finds_the_cheapest_within_the_limit_on_a_fraction_of_the_requests():
    space, limits = space_of(MODELS, drafters=MODELS[1:3]), Limits(0.01)
    ratios = []
    for seed in range(10):
        machine = Formula(space, seed)
        seen = search(space, machine.measure, limits, requests=5000, points=24, seed=seed)
        allowed = [trial for trial, loss in seen if trial.requests == 5000 and not limits.broken(trial, loss)]
        best = min(machine.cost(point) for point in space.all() if machine.loss(point) <= 0.01)
        ratios.append(min(machine.cost(trial.point) for trial in allowed) / best)
        assert machine.requests < 0.05 * space.size * 5000
    # Chance may put the very cheapest over the limit of losses, on all requests too.
    assert sorted(ratios)[7] < 1.1, ratios


def test_what_cannot_be_served_costs_no_more_than_one_try_and_its_choice_is_not_combined():
    space = space_of(MODELS)
    machine = Formula(space, 0)

    def measure(point, count):
        if point[0] == 2:
            broken = Trial(point=point, requests=count, failure="no such model")
            return broken, Loss(1.0, 1.0, 1.0)
        return machine.measure(point, count)

    seen = search(space, measure, Limits(1.0), requests=500, points=12, seed=1)
    assert any(trial.failure for trial, _ in seen)
    assert not any(trial.failure for trial, _ in seen if trial.requests > rungs(500)[0])


def test_late_answers_break_a_limit_whatever_they_cost():
    trial = Trial(point=(0,), requests=10, cost=1.0, first_token=0.2, last_token=2.0)
    none = Loss(0.0, 0.0, 0.0)
    assert Limits(0.0).broken(trial, none) == ""
    assert Limits(0.0, first_token=0.1).broken(trial, none) == "first tokens are late"
    assert Limits(0.0, last_token=1.9).hopeless(trial, none)
    assert Limits(0.0, cost=0.5).broken(trial, none) == "costs too much"


def test_a_loss_over_the_limit_by_chance_is_given_another_round():
    unlucky = Loss(0.02, -0.01, 0.05)
    trial = Trial(point=(0,), requests=10, cost=1.0)
    assert Limits(0.01).broken(trial, unlucky) and not Limits(0.01).hopeless(trial, unlucky)


def test_rounds_end_with_all_requests():
    assert rungs(5000) == [185, 555, 1666, 5000]
    assert rungs(30) == [30]
