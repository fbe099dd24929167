"""Two tiers of known quality and what the small one tells of its answers, drawn at random: no model, no text."""

import math

import numpy as np

from penstock.proxy.routing.learned import Evidence, Question
from penstock.tune.router.rows import Outcomes, Row

Array = np.ndarray


def chance(log_odds: Array) -> Array:
    return 1 / (1 + np.exp(-log_odds))


class SimulatedTiers:
    """Questions are easy or hard; both tiers are right more often with easy ones, the large one far more often.

    `telling`: how much the log-probabilities of the small tier say of its answer; 0: nothing.
    """

    def __init__(self, seed: int, telling: float = 1.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.telling = telling

    def draw(self, count: int) -> tuple[Array, Outcomes]:
        """Three features [count, 3], one of them noise, and how both did."""
        hard = self.rng.standard_normal(count)
        small = self.rng.random(count) < chance(1.5 - 1.8 * hard)
        large = self.rng.random(count) < chance(3 - hard)
        sure = self.telling * (1.5 * small - 0.7 * hard) + self.rng.standard_normal(count)
        length = self.telling * hard + self.rng.standard_normal(count)
        features = np.column_stack((-np.exp(-sure), length, self.rng.standard_normal(count)))
        cost = np.ones(count)
        return features, Outcomes(small, large, 0.2 * cost, cost, cost, np.arange(count))

    def rows(self, count: int) -> list[Row]:
        """The same, as evidence of answers; every question is its own group."""
        features, outcomes = self.draw(count)
        return [
            Row(
                f"question {place}",
                Question(f"question {place}"),
                self._evidence(*features[place]),
                bool(outcomes.small_right[place]),
                bool(outcomes.large_right[place]),
                0.2,
                1.0,
                1.0,
            )
            for place in range(count)
        ]

    def _evidence(self, mean: float, length: float, noise: float) -> Evidence:
        tokens = max(1, round(6 + 2 * length))
        chosen = [mean + 0.01 * noise] * tokens
        return Evidence(
            10, chosen, [[value, math.log1p(-math.exp(min(value, -1e-3)))] for value in chosen], True
        )
