"""A judge finds what tells good answers from bad ones, and what its score means as a probability."""

import numpy as np
import pytest
from simulated_tiers import SimulatedTiers, chance

from penstock.proxy.routing.learned.features import EVIDENCE_FEATURES, Inputs
from penstock.tune.router.fit import Examples, fit, isotonic


def choice(values):
    return Examples(Inputs(EVIDENCE_FEATURES[: values.shape[1]]), values)


def test_what_tells_weighs_and_noise_does_not():
    features, outcomes = SimulatedTiers(1).draw(600)
    ruling = fit([choice(features)], ~outcomes.loses, outcomes.groups)
    sure, length, noise = ruling.weights
    assert sure > 0.2 and length < -0.2 and abs(noise) < 0.1


def test_inputs_that_are_only_noise_are_not_chosen():
    features, outcomes = SimulatedTiers(2).draw(300)
    noise = np.random.default_rng(0).standard_normal((300, 10))
    wide = np.column_stack((features, noise))
    ruling = fit([choice(features), choice(wide)], ~outcomes.loses, outcomes.groups)
    assert ruling.inputs.width == 3


@pytest.mark.parametrize("keeps", [True, False])
def test_labels_that_are_all_alike_give_a_judge_of_one_opinion(keeps):
    features, outcomes = SimulatedTiers(3).draw(100)
    ruling = fit([choice(features)], np.full(100, keeps), outcomes.groups)
    assert all((probability > 0.9) == keeps for probability in ruling.probabilities)


def test_probabilities_rise_and_are_true():
    rng = np.random.default_rng(4)
    scores = 2 * rng.standard_normal(4000)
    knots, probabilities = isotonic(scores, rng.random(4000) < chance(scores))
    assert (np.diff(knots) > 0).all() and (np.diff(probabilities) >= 0).all()
    places = np.linspace(-3, 3, 13)
    assert np.abs(np.interp(places, knots, probabilities) - chance(places)).max() < 0.07


def test_probabilities_are_never_quite_certain():
    _, probabilities = isotonic(np.arange(10.0), np.arange(10) >= 5)
    assert probabilities.min() == 0.05 and probabilities.max() == 0.95
