"""A promise is kept: with the quality, and in as many draws, as was promised, and no more cautiously than need be."""

import numpy as np
import pytest
from simulated_tiers import SimulatedTiers

from penstock.proxy.routing.learned.features import Inputs
from penstock.proxy.routing.learned.scorer import standardized
from penstock.tune.router.fit import Examples, fit
from penstock.tune.router.promise import most_losses, set_thresholds

QUALITIES = (0.9, 0.95, 0.99)
DELTA = 0.05


def judged(ruling, features):
    values = standardized(features, np.array(ruling.means), np.array(ruling.scales))
    return values @ np.array(ruling.weights) + ruling.offset


@pytest.mark.parametrize("seed", range(20))
def test_a_router_of_400_questions_keeps_what_it_promises(seed):
    """In 20 of 20 draws: fitted and calibrated on few, judged on many more."""
    tiers = SimulatedTiers(seed)
    features, fitted = tiers.draw(350)
    inputs = Inputs(("mean_logprob", "answer_length", "finished"))
    ruling = fit([Examples(inputs, features)], ~fitted.loses, fitted.groups)
    features, calibrated = tiers.draw(400)
    thresholds = set_thresholds(
        judged(ruling, features), calibrated.loses, calibrated.large_right, QUALITIES, DELTA
    )
    features, served = tiers.draw(50_000)
    scores = judged(ruling, features)
    kept_shares = []
    for threshold in thresholds:
        assert threshold.score is not None
        kept = scores >= threshold.score
        right = np.where(kept, served.small_right, served.large_right)
        assert right.mean() >= threshold.quality * served.large_right.mean()
        kept_shares.append(kept.mean())
    assert kept_shares[0] > 0.5 and kept_shares == sorted(kept_shares, reverse=True)


def test_a_promise_fails_as_rarely_as_it_says_and_not_much_more_rarely():
    rng = np.random.default_rng(0)
    failed = drawn = 0
    for _ in range(2000):
        # A score that is the very chance to lose nothing; the large tier is always right.
        scores = rng.random(300)
        (threshold,) = set_thresholds(scores, rng.random(300) > scores, np.ones(300, bool), [0.9], DELTA)
        # Of those kept, the mean of 1 - score is lost.
        lost = (1 - threshold.score) ** 2 / 2
        failed += lost > 0.1
        drawn += 1
    assert 0.02 < failed / drawn < DELTA


def test_nothing_is_promised_by_too_few_questions():
    assert most_losses(58, 0.95, DELTA) == -1
    assert most_losses(59, 0.95, DELTA) == 0
    assert most_losses(93, 0.95, DELTA) == 1
    scores, none = np.linspace(0, 1, 58), np.zeros(58, bool)
    (threshold,) = set_thresholds(scores, none, ~none, [0.95], DELTA)
    assert threshold.score is None and threshold.questions == 58


def test_questions_that_the_large_tier_gets_wrong_are_no_evidence():
    scores, none = np.linspace(0, 1, 200), np.zeros(200, bool)
    right = np.arange(200) < 50
    (threshold,) = set_thresholds(scores, none, right, [0.95], DELTA)
    assert threshold.score is None and threshold.questions == 50


def test_as_much_is_kept_as_the_losses_allow():
    scores = np.linspace(0, 1, 100)
    loses = np.isin(np.arange(100), (3, 40, 70))
    (threshold,) = set_thresholds(scores, loses, np.ones(100, bool), [0.95], DELTA)
    assert threshold.losses == 1 and threshold.score == scores[41] and threshold.share == 0.59


def test_where_nothing_is_lost_nothing_is_kept_that_is_lower_than_all_that_was_seen():
    scores = np.append(np.linspace(0.2, 1, 100), -np.inf)
    none = np.zeros(101, bool)
    (threshold,) = set_thresholds(scores, none, ~none, [0.9], DELTA)
    assert threshold.score == 0.2


def test_where_all_scores_are_alike_all_are_kept_or_none():
    scores, right = np.zeros(100), np.ones(100, bool)
    for losses, kept in ((1, 0.0), (20, None)):
        (threshold,) = set_thresholds(scores, np.arange(100) < losses, right, [0.9], DELTA)
        assert threshold.score == kept
