"""A router is worth what it adds to a random mix of the same cost, its drafts not counted."""

import numpy as np
import pytest
from simulated_tiers import SimulatedTiers

from penstock.tune.bootstrap import resampled_weights
from penstock.tune.router.curve import PLACES, oracle_scores, trace
from penstock.tune.router.learn import _share
from penstock.tune.router.rows import Outcomes


def of(small, large, *, small_cost=0.2, escalated_cost=1.0):
    one = np.ones(len(small))
    small, large = (np.array(side, bool) for side in (small, large))
    return Outcomes(small, large, small_cost * one, one, escalated_cost * one, np.arange(len(one)))


def test_who_asks_the_large_tier_only_where_it_gains_is_worth_most():
    # Half of the small tier's answers are wrong, and all of the large tier's right.
    outcomes = of([1, 0] * 50, [1] * 100)
    curve = trace(oracle_scores(outcomes), outcomes, cascade=False)
    # At the middle of both costs every wrong answer has been replaced; the mix has replaced half of them.
    middle = PLACES.index(0.5)
    assert abs(curve.quality[middle].value - 1) < 1e-9
    assert abs(curve.gain[middle].value - 0.25) < 1e-9
    # A cascade pays the small tier, too: 0.6 - 0.2 buys 40 of the 50.
    cascade = trace(oracle_scores(outcomes), outcomes, cascade=True)
    assert abs(cascade.quality[middle].value - 0.9) < 0.011
    assert curve.mean_gain.low > cascade.mean_gain.low > 0


def test_scores_that_tell_nothing_gain_nothing():
    gains = []
    for seed in range(5):
        _, outcomes = SimulatedTiers(seed).draw(400)
        scores = np.random.default_rng(seed).random(400)
        gain = trace(scores, outcomes, cascade=False).mean_gain
        gains.append(gain.value)
        assert gain.low < 0.01 and gain.high > -0.01
    assert abs(np.mean(gains)) < 0.01


def test_drafts_are_no_merit_of_the_judge():
    _, outcomes = SimulatedTiers(1).draw(400)
    outcomes = of(outcomes.small_right, outcomes.large_right, escalated_cost=0.3)
    assert abs(outcomes.dear_cost - 0.5) < 1e-9
    scores = np.random.default_rng(1).random(400)
    assert abs(trace(scores, outcomes, cascade=True).mean_gain.value) < 0.015


def test_a_group_is_drawn_as_one():
    small, large = [1, 0] * 50, [1] * 100
    alone = of(small, large)
    together = Outcomes(
        alone.small_right,
        alone.large_right,
        alone.small_cost,
        alone.large_cost,
        alone.escalated_cost,
        np.arange(100) // 20,
    )
    scores = np.random.default_rng(0).random(100)
    widths = [
        one.high - one.low
        for one in (trace(scores, outcomes, cascade=False).quality[9] for outcomes in (alone, together))
    ]
    # Groups are alike here, half right each: so they vary less than questions would.
    assert widths[1] < widths[0]


def test_a_share_without_a_loss_is_no_certainty():
    groups, right = np.arange(25), np.ones(25, bool)
    weights = resampled_weights(groups)
    whole = _share(weights, right, right, groups)
    assert (whole.value, whole.high) == (1.0, 1.0)
    assert whole.low == pytest.approx(0.8628, abs=1e-4)  # Clopper and Pearson: 25 of 25, two-sided 95 %
    # The same question 25 times is one.
    assert _share(weights, right, right, np.zeros(25, int)).low == pytest.approx(0.025)
    lost = _share(weights, right & (groups > 0), right, groups)
    assert lost.value == 0.96 and lost.low < 0.96 < lost.high
