"""A judge from examples: logistic regression on the fewest inputs that do, and what its score means as a probability.

What is predicted is that keeping the small tier's answer loses nothing: it is right, or the large tier's is wrong, too. By
the lemma of Neyman and Pearson, keeping the answers where that is likeliest keeps most for the same share of losses.

Which inputs, and how strong the ridge, is decided by five folds, the groups of questions whole. The probabilities come from
scores of models that had not seen the question (isotonic regression: Zadrozny and Elkan, KDD 2002); they explain, and
promise nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...proxy.routing.learned.features import Inputs
from ...proxy.routing.learned.router_file import Ruling
from ...proxy.routing.learned.scorer import standardized

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FOLDS = 5
RIDGES = (1.0, 10.0, 100.0, 1000.0)
_STEPS = 20
_MOST_KNOTS = 64


@dataclass(frozen=True, slots=True)
class Examples:
    """One choice of inputs, and their values [N, width]."""

    inputs: Inputs
    values: Floats


def fit(
    choices: Sequence[Examples], keeps: Bools, groups: NDArray[np.int64], *, buffer_tokens: int = 0
) -> Ruling:
    """The ruling, still without thresholds, of the simplest choice that predicts as well as any.

    Args:
        choices: the simplest first.
        keeps: keeping the small tier's answer loses nothing [N].
        groups: rows of a group are in the same fold [N].
    """
    fold = groups % FOLDS
    best = [
        min(
            (
                (_losses(scores, keeps), ridge, scores)
                for ridge, scores in _unseen(choice.values, keeps, fold)
            ),
            key=lambda one: float(one[0].mean()),
        )
        for choice in choices
    ]
    number = _simplest([losses for losses, _, _ in best])
    _, ridge, scores = best[number]
    chosen = choices[number]
    means, scales = chosen.values.mean(axis=0), chosen.values.std(axis=0) + 1e-6
    model = _logistic(_design(chosen.values, means, scales), keeps, ridge)
    knots, probabilities = isotonic(scores, keeps)
    return Ruling(
        buffer_tokens=buffer_tokens,
        inputs=chosen.inputs,
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(model[:-1].tolist()),
        offset=float(model[-1]),
        scores=tuple(knots.tolist()),
        probabilities=tuple(probabilities.tolist()),
        thresholds=(),
    )


def isotonic(scores: Floats, keeps: Bools) -> tuple[Floats, Floats]:
    """Points [K] through which the probability rises with the score, K at most 64 (pool adjacent violators).

    Never quite 0 or 1: so many examples cannot tell that.
    """
    order = np.argsort(scores, kind="stable")
    # Of each block: its examples, the sum of their scores, and how many are kept.
    blocks: list[list[float]] = []
    for part in np.array_split(order, min(len(order), _MOST_KNOTS)):
        blocks.append([len(part), float(scores[part].sum()), float(keeps[part].sum())])
        while len(blocks) > 1 and blocks[-2][2] / blocks[-2][0] >= blocks[-1][2] / blocks[-1][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    count, total, kept = np.array(blocks).T
    edge = 0.5 / len(scores)
    return total / count, np.clip(kept / count, edge, 1 - edge)


def _simplest(losses: Sequence[Floats]) -> int:
    """The first choice that is no worse than the best, but for a standard error of the difference (Breiman et al. 1984)."""
    best = min(losses, key=lambda one: float(one.mean()))
    for number, one in enumerate(losses):
        worse = one - best
        if worse.mean() <= worse.std() / math.sqrt(len(worse)):
            return number
    raise AssertionError("the best is no worse than itself")


def _unseen(values: Floats, keeps: Bools, fold: NDArray[np.int64]) -> Iterator[tuple[float, Floats]]:
    """For each ridge the scores of all rows by models that were fitted to the other folds."""
    for ridge in RIDGES:
        yield ridge, _unseen_scores(values, keeps, fold, ridge)


def _unseen_scores(values: Floats, keeps: Bools, fold: NDArray[np.int64], ridge: float) -> Floats:
    scores = np.zeros(len(keeps))
    for number in range(FOLDS):
        held = fold == number
        seen = values[~held]
        means, scales = seen.mean(axis=0), seen.std(axis=0) + 1e-6
        model = _logistic(_design(seen, means, scales), keeps[~held], ridge)
        scores[held] = _design(values[held], means, scales) @ model
    return scores


def _design(values: Floats, means: Floats, scales: Floats) -> Floats:
    return np.column_stack((standardized(values, means, scales), np.ones(len(values))))


def _logistic(design: Floats, keeps: Bools, ridge: float) -> Floats:
    """Newton's method. The offset, last, is shrunk as little as keeps it finite where all are kept, or none."""
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 0.5
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (keeps - chance) - penalty * weights
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-4:
            break
    return weights


def _losses(scores: Floats, keeps: Bools) -> Floats:
    """Negative log-likelihoods, nats."""
    return np.asarray(np.logaddexp(0, np.where(keeps, -scores, scores)))
