"""The policies that `trust_stream.py` compares: a fixed threshold, vCache's, and Penstock's."""

import math
import random
from statistics import NormalDist

import numpy as np
from trust_replay import NearHit

from penstock.cache.trust.guards import GuardSet
from penstock.cache.trust.policy import Decision, Observation, TrustPolicy

# Below it a near hit is not even a draft.
DRAFTS = 0.7


class Fixed:
    """Serves at or above one cosine."""

    floor, keeps_repeats = DRAFTS, True

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def serves(self, near: NearHit) -> bool:
        return near.cosine >= self.threshold

    def learn(self, same: bool, number: int) -> None:
        pass


class Trust:
    """Penstock's: one score and one certified threshold, for what the guards let pass."""

    floor, keeps_repeats = DRAFTS, True

    def __init__(self, max_error_rate: float, guards: GuardSet, seed: int = 0) -> None:
        self.policy = TrustPolicy(max_error_rate)
        self.guards: GuardSet = guards
        self.random = random.Random(seed)
        self.decision: Decision | None = None

    def serves(self, near: NearHit) -> bool:
        self.decision = None
        if near.refused(self.guards):
            return False
        # Row numbers are spread over 64 bits, as hashes of entries are.
        name = near.entry * 0x9E3779B97F4A7C15 & (1 << 64) - 1
        self.decision = self.policy.decide(Observation(name, near.features()), self.random.random())
        return self.decision.serve

    def learn(self, same: bool, number: int) -> None:
        if self.decision is None:
            return  # what the guards refuse teaches nothing
        self.policy.learn(self.decision, same, float(number))
        if self.policy.refit_due:
            self.policy.refit()


class VCache:
    """A threshold for every entry, from the entry's own labels (Schroeder et al., arXiv 2502.03771), from its formulas.

    P(same | cosine s) = 1 / (1 + exp(-gamma (s - t))), fitted per entry; t' is an upper confidence bound of t at 1 - e.
    The near hit is explored with probability tau = min over e of 1 - delta / (1 - (1 - e) P(same | s; t', gamma)), so that
    at most delta of *all* requests are answered wrongly. As there, an entry begins with two labels of its own (0, different;
    1, same), explores always until it has six, and a request whose near hit was right is not stored.
    """

    floor, keeps_repeats = 0.0, False
    FEWEST = 6
    _DOUBTS = np.linspace(1e-6, 1 - 1e-6, 50)
    _DEVIATIONS = np.array([NormalDist().inv_cdf(1 - doubt) for doubt in _DOUBTS.tolist()])

    def __init__(self, max_error_rate: float, seed: int = 0) -> None:
        self.max_error_rate = max_error_rate
        self.random = random.Random(seed)
        self.labels: dict[int, list[tuple[float, bool]]] = {}
        self.last: NearHit | None = None

    def serves(self, near: NearHit) -> bool:
        self.last = near
        labels = self.labels.setdefault(near.entry, [(0.0, False), (1.0, True)])
        if len(labels) < self.FEWEST:
            return False
        t, gamma, deviation = _sigmoid(labels)
        steepness = np.clip(gamma * (near.cosine - t - self._DEVIATIONS * deviation), -50, 50)
        right = (1 - self._DOUBTS) / (1 + np.exp(-steepness))
        return self.random.random() > float((1 - self.max_error_rate / (1 - right)).min())

    def learn(self, same: bool, number: int) -> None:
        assert self.last is not None
        self.labels[self.last.entry].append((self.last.cosine, same))


def _sigmoid(labels: list[tuple[float, bool]]) -> tuple[float, float, float]:
    """Maximum likelihood: t, gamma, and t's standard deviation by the delta method.

    Where the labels can be separated that has no meaning; the authors tabulate simulated variances there, which 0.2 / n
    follows within a factor of two.
    """
    cosines = np.array([cosine for cosine, _ in labels])
    same = np.array([same for _, same in labels])
    design = np.column_stack((np.ones(len(labels)), cosines))
    ridge, weights = np.diag([1e-4, 1e-4]), np.array([-5.0, 10.0])
    for _ in range(60):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + ridge
        step = np.linalg.solve(curve, design.T @ (same - chance) - ridge @ weights)
        weights = weights + step * min(1.0, 20 / np.abs(step).max())
        if np.abs(step).max() < 1e-5:
            break
    gamma = max(float(weights[1]), 1e-6)
    t = min(max(-float(weights[0]) / gamma, 0.0), 1.0)
    if cosines[same].min() > cosines[~same].max():
        return t, gamma, math.sqrt(0.2 / len(labels))
    gradient = np.array([-1 / gamma, float(weights[0]) / gamma**2])
    return t, gamma, math.sqrt(max(float(gradient @ np.linalg.inv(curve) @ gradient), 0.0))
