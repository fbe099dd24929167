"""What points would cost and lose, guessed from those measured: each choice multiplies the cost, and adds to the loss.

Ridge regressions on the choices, of the logarithm of the cost and of the loss, every point by as many requests as it
answered. They pool what many points tell of a choice; they only say what to measure next.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .space import Point, Space
from .trial import Loss, Trial

# As if each choice had been measured so often, on all requests seen of it, to do nothing.
RIDGE = 0.05


class Surrogate:
    """Args:
    baseline: seconds per answer there; its loss is none.
    measured: trials that did not fail.
    """

    def __init__(self, space: Space, baseline: float, measured: Sequence[tuple[Trial, Loss]]) -> None:
        self._widths = [len(lever.choices) for lever in space.levers]
        rows = np.stack([self._row(trial.point) for trial, _ in measured])
        counts = np.array([trial.requests for trial, _ in measured], dtype=float)
        counts /= counts.mean()
        self._baseline = baseline
        logs = np.log([trial.cost / baseline for trial, _ in measured])
        gram = (rows.T * counts) @ rows + RIDGE * np.eye(rows.shape[1])
        losses = np.array([loss.value for _, loss in measured])
        told = np.stack([logs, losses], axis=1)
        self._weights = np.linalg.solve(gram, (rows.T * counts) @ told)

    def cost(self, point: Point) -> float:
        return self._baseline * float(np.exp((self._row(point) @ self._weights)[0]))

    def loss(self, point: Point) -> float:
        return float((self._row(point) @ self._weights)[1])

    def _row(self, point: Point) -> NDArray[np.float64]:
        """1 for each choice that is not the baseline's."""
        ones = [np.eye(width)[number][1:] for width, number in zip(self._widths, point, strict=True)]
        return np.concatenate(ones)
