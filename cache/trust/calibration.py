"""From labelled near hits to a score and the lowest score that may be served. Knows neither entries' texts nor time.

Score: log-odds of "same answer" by logistic regression. Every row is judged by a model that has not seen its entry (five
folds by entry), because a model looks better on what it was fitted to; the model in use is the mean of the five.

Threshold: Clopper-Pearson on the rows at or above a cut, and cuts are tried from the highest score downwards until one
fails (fixed-sequence testing: no price for the number of cuts). Three starts share the confidence, because one wrong
label among the first few hundred would otherwise end the only sequence at once.

Above the threshold only explored hits are labelled where hits may be served, so such a row stands for many near hits; below
it, and above it where the model answers anyway, all are labelled, and a row stands for itself. Each row weighs one over
the rate at which hits like it were labelled when it was, so the sum of weights around a score estimates how many near
hits there were, and the weighted share of wrong ones how many of them were wrong, however the kinds are mixed. Taking
each row for what it alone stands for would cost most of the evidence (a thousand rows that stand for one and fifty that
stand for twenty count as 190). But at one score, neither chance nor the kind of request says anything about the label: so
rows of like score share what they stand for (post-stratification), and the bound takes their effective number,
(sum w)^2 / sum w^2.

That makes the bound exact for a log labelled throughout, and approximate once exploration has begun; nor does the confidence
pay for the many times it is made anew. What that comes to is measured: bench/results/trust.md, tests/cache/trust.
"""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from .bound import clean_labels_needed, tail_of_share
from .labels import CONTRADICTED, SAME, TRUSTED, Rows

Floats = NDArray[np.float64]

FOLDS = 5
# Multiples of the fewest labels that can do, each with an equal share of the confidence.
STARTS = (1, 2, 4)
_STEP = 1.1
_RIDGE = 1.0
# A run of failures: as likely under this many times the allowed rate as against it, by a factor of a hundred.
_DRIFT = 4
_ALARM = math.log(100)
# Cuts that are wrong this many times too often may yet come to be served: their rows are "close".
_CLOSE = 8
# Rows next to each other in the order of scores that count as of like score.
_ALIKE = 100


class Calibration(msgspec.Struct, frozen=True):
    """A score and what may be served by it.

    Attributes:
        weights, offset: score = weights · values + offset.
        threshold: lowest score that is served; infinite when nothing is.
        close: lowest score whose labels may come to matter; minus infinite when all do.
        labels: what the evidence at or above the threshold is worth, in equal labels.
        error_rate: estimated there; its upper bound is at most the allowed rate.
    """

    weights: tuple[float, ...]
    offset: float
    threshold: float = math.inf
    close: float = -math.inf
    labels: float = 0.0
    error_rate: float = 1.0


def fewest_labels(max_error_rate: float, confidence: float) -> int:
    """Clean labels before anything is served: 408 for 1 % at confidence 0.95 (299, were there one start only)."""
    return clean_labels_needed(max_error_rate, _share(confidence))


def calibrate(rows: Rows, max_error_rate: float, confidence: float) -> Calibration:
    """Fit on all rows, certify on those that say what is served today."""
    values = rows["values"].astype(np.float64)
    same = rows["flags"] & SAME != 0
    fold = (rows["entry"] % FOLDS).astype(np.int64)
    scores, weights, offset = _cross_fit(values, same, fold)
    counted = (rows["flags"] & CONTRADICTED == 0) & _since_alarm(rows, max_error_rate)
    cuts = _Cuts(scores[counted], same[counted], rows["standing_for"][counted].astype(np.float64))
    last = cuts.lowest_cut(max_error_rate, confidence)
    close = cuts.lowest_bearable(_CLOSE * max_error_rate, fewest_labels(max_error_rate, confidence))
    if last is None:
        return Calibration(tuple(weights.tolist()), offset, close=close)
    number, errors = cuts.effective(last)
    return Calibration(
        tuple(weights.tolist()), offset, float(cuts.scores[last]), close, number, errors / number
    )


class _Cuts:
    """Labelled rows, the highest score first, and what all rows down to one of them say together."""

    def __init__(self, scores: Floats, same: NDArray[np.bool_], standing_for: Floats) -> None:
        order = np.argsort(-scores, kind="stable")
        self.scores = scores[order]
        weights = _shared(standing_for[order])
        self._weight = np.cumsum(weights)
        self._squares = np.cumsum(weights**2)
        self._wrong = np.cumsum(weights * ~same[order])

    def effective(self, last: int) -> tuple[float, float]:
        """How many equal rows those down to `last` are worth, and how many of these are wrong."""
        number = float(self._weight[last] ** 2 / self._squares[last])
        return number, number * float(self._wrong[last] / self._weight[last])

    def lowest_cut(self, rate: float, confidence: float) -> int | None:
        """The last row of the lowest certified cut; None when no cut can be certified."""
        fewest, lowest = fewest_labels(rate, confidence), None
        for start in STARTS:
            rows = float(fewest * start)
            while rows <= len(self.scores):
                # Equal scores are served together.
                last = int(np.searchsorted(-self.scores, -self.scores[int(rows) - 1], side="right")) - 1
                number, wrong = self.effective(last)
                if tail_of_share(wrong, number, rate) > 1 - _share(confidence):
                    break
                lowest = last if lowest is None else max(lowest, last)
                rows = (last + 1) * _STEP
        return lowest

    def lowest_bearable(self, rate: float, fewest: int) -> float:
        """The lowest score down to which, of at least `fewest`, at most `rate` were wrong.

        Minus infinity where there is none: then all labels may come to matter.
        """
        bearable = np.flatnonzero(self._wrong <= rate * self._weight)
        return float(self.scores[bearable[-1]]) if len(bearable) and bearable[-1] >= fewest else -math.inf


def _shared(standing_for: Floats) -> Floats:
    """The mean of each row and its neighbours in the order of scores."""
    if len(standing_for) <= _ALIKE:
        return np.full(len(standing_for), standing_for.mean() if len(standing_for) else 1.0)
    sums = np.concatenate(([0.0], np.cumsum(standing_for)))
    begin = np.clip(np.arange(len(standing_for)) - _ALIKE // 2, 0, len(standing_for) - _ALIKE)
    return (sums[begin + _ALIKE] - sums[begin]) / _ALIKE


def _share(confidence: float) -> float:
    return 1 - (1 - confidence) / len(STARTS)


def _since_alarm(rows: Rows, rate: float) -> NDArray[np.bool_]:
    """Rows after the last run of failures at or above the threshold (CUSUM, Page 1954): older ones are of another time."""
    worse = math.log(_DRIFT)
    better = math.log((1 - _DRIFT * rate) / (1 - rate))
    total, begin, since = 0.0, -math.inf, -math.inf
    trusted = rows["flags"] & TRUSTED != 0
    for at, flags in zip(rows["at"][trusted].tolist(), rows["flags"][trusted].tolist(), strict=True):
        if total == 0:
            begin = at
        total = max(0.0, total + (better if flags & SAME else worse))
        if total > _ALARM:
            total, since = 0.0, begin
    kept: NDArray[np.bool_] = rows["at"] >= since
    return kept


def _cross_fit(
    values: Floats, same: NDArray[np.bool_], fold: NDArray[np.int64]
) -> tuple[Floats, Floats, float]:
    """Scores by models that did not see the row's fold [N], weights of the mean model [WIDTH], and its offset."""
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-3
    design = np.column_stack(((values - mean) / spread, np.ones(len(values))))
    scores, models = np.empty(len(values)), []
    for number in range(FOLDS):
        held = fold == number
        models.append(_logistic(design[~held], same[~held]))
        scores[held] = design[held] @ models[-1]
    model = np.mean(models, axis=0)
    weights = model[:-1] / spread
    return scores, weights, float(model[-1] - weights @ mean)


def _logistic(design: Floats, same: NDArray[np.bool_]) -> Floats:
    """Logistic regression by Newton's method, with a ridge that also keeps separable labels finite."""
    ridge = np.full(design.shape[1], _RIDGE)
    weights = np.zeros(design.shape[1])
    for _ in range(12):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (same - chance) - ridge * weights
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-4:
            break
    return weights
