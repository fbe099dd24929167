"""From rows to a router: judges fitted, promises calibrated, and both judged on rows that neither has seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...cache.trust.bound import clean_labels_needed
from ...errors import TuneError
from ...proxy.routing.learned.features import EVIDENCE_FEATURES, QUESTION_FEATURES, Inputs
from ...proxy.routing.learned.router_file import Ruling, Threshold
from ...proxy.routing.learned.scorer import Scorer
from ..bootstrap import LOW, Estimate, estimate, resampled_weights
from .curve import Curve, oracle_scores, trace
from .fit import Examples, fit
from .promise import set_thresholds
from .rows import Outcomes, Row, Split, outcomes_of

Floats = NDArray[np.float64]

WORD_BUCKETS = 256
# Fewer rows than these teach nothing that holds for others.
FEWEST_FITTED = 40
FEWEST_TESTED = 20
_BOTH = EVIDENCE_FEATURES + QUESTION_FEATURES
_OF_ANSWERS = (Inputs(EVIDENCE_FEATURES), Inputs(_BOTH), Inputs(_BOTH, word_buckets=WORD_BUCKETS))


@dataclass(frozen=True, slots=True)
class Promise:
    """What a threshold does on the test rows.

    Attributes:
        kept: share of questions that the small tier answers.
        stays: of the questions that the large tier answers right, the share that the route answers right.
        quality: share of right answers served, over that of the large tier.
        cost: over that of asking the large tier only.
        pays: it costs less than what has the large tier's quality without a judge.
    """

    threshold: Threshold
    kept: float
    stays: Estimate
    quality: Estimate
    cost: Estimate
    pays: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to route.

    Attributes:
        name: "cascade", after the whole answer or so many tokens, or "predictive".
        cascade: the small tier answers first.
        objection: why it is not recommended; None: it is.
    """

    name: str
    cascade: bool
    ruling: Ruling
    curve: Curve
    promises: list[Promise]
    objection: str | None


@dataclass(frozen=True, slots=True)
class Learned:
    """Attributes:
    small_right, large_right: shares of right answers, of the rows that were not fitted to.
    small_cost, large_cost, escalated_cost, dear_cost: of an answer, the mean of the same; see `Row` and `Outcomes`.
    without_logprobs: answers of the small tier, of those to fit to.
    """

    policies: list[Policy]
    oracle: Curve
    small_right: Estimate
    large_right: Estimate
    small_cost: float
    large_cost: float
    escalated_cost: float
    dear_cost: float
    without_logprobs: int


def learn(split: Split, *, buffers: Sequence[int], qualities: Sequence[float], delta: float) -> Learned:
    """Judges of whole answers (0 in `buffers`) or of so many tokens, and one of questions.

    Raises TuneError where there are too few rows, or the large tier is not the dearer one, or never right.
    """
    for part, rows, fewest in (("fit", split.fit, FEWEST_FITTED), ("test", split.test, FEWEST_TESTED)):
        if len(rows) < fewest:
            raise TuneError(
                f"{len(rows)} different questions are left to {part} a router, and {fewest} are needed; give a few hundred "
                "in all, better a thousand."
            )
    held_back = outcomes_of(split.held_back)
    small_cost, large_cost = float(held_back.small_cost.mean()), float(held_back.large_cost.mean())
    if small_cost >= large_cost:
        raise TuneError(
            f"An answer of the small tier costs {small_cost / large_cost:.2f} times one of the large tier: nothing can be "
            "saved. Name the cheaper tier first, or say what tokens cost with --prices."
        )
    if not held_back.large_right.any():
        raise TuneError("The large tier answers none of the questions right: there is no quality to keep.")
    if not held_back.loses.any():
        raise TuneError(
            f"The small tier loses nothing: of {len(held_back)} questions held back, it answers all right that the large "
            "tier does. Serve it alone; there is nothing to route."
        )
    answered = [row for row in split.fit if not _OF_ANSWERS[0].missing(row.question, row.evidence)]
    policies = []
    if len(answered) >= FEWEST_FITTED:
        policies += [_policy(split, _OF_ANSWERS, buffer, qualities, delta) for buffer in buffers]
    policies.append(_policy(split, _of_questions(split.fit[0]), None, qualities, delta))
    weights = resampled_weights(held_back.groups)
    return Learned(
        policies,
        trace(oracle_scores(held_back), held_back, cascade=False),
        _mean(weights, held_back.small_right),
        _mean(weights, held_back.large_right),
        small_cost,
        large_cost,
        float(held_back.escalated_cost.mean()),
        held_back.dear_cost,
        without_logprobs=len(split.fit) - len(answered),
    )


def _of_questions(row: Row) -> list[Inputs]:
    width = len(row.question.vector or ())
    choices = [Inputs(QUESTION_FEATURES), Inputs(QUESTION_FEATURES, word_buckets=WORD_BUCKETS)]
    return choices + ([Inputs(QUESTION_FEATURES, vector_width=width)] if width else [])


def _policy(
    split: Split, choices: Sequence[Inputs], buffer: int | None, qualities: Sequence[float], delta: float
) -> Policy:
    """`buffer`: how many tokens of an answer are looked at; 0: all; None: not even the first."""
    cascade = buffer is not None
    name = "predictive" if buffer is None else f"cascade, {buffer} tokens" if buffer else "cascade"
    ruling = _fitted(split.fit, choices, buffer or 0)
    calibrating, tested, held_back = map(outcomes_of, (split.calibrate, split.test, split.held_back))
    thresholds = set_thresholds(
        scores_of(ruling, split.calibrate), calibrating.loses, calibrating.large_right, qualities, delta
    )
    scores = scores_of(ruling, split.test)
    promises = [_promise(threshold, scores, tested, cascade=cascade) for threshold in thresholds]
    curve = trace(scores_of(ruling, split.held_back), held_back, cascade=cascade)
    # Where keeping a promise saves nothing, always asking the large tier keeps it better.
    able = [p.threshold if p.pays else msgspec.structs.replace(p.threshold, score=None) for p in promises]
    return Policy(
        name,
        cascade,
        msgspec.structs.replace(ruling, thresholds=tuple(able)),
        curve,
        promises,
        _objection(curve, promises, delta),
    )


def _fitted(rows: Sequence[Row], choices: Sequence[Inputs], buffer_tokens: int) -> Ruling:
    seen = [(row, row.evidence.beginning(buffer_tokens)) for row in rows]
    # What one choice misses, all do: log-probabilities.
    usable = [(row, evidence) for row, evidence in seen if not choices[0].missing(row.question, evidence)]
    outcomes = outcomes_of([row for row, _ in usable])
    examples = [
        Examples(choice, np.array([choice.values(row.question, evidence) for row, evidence in usable]))
        for choice in choices
    ]
    return fit(examples, ~outcomes.loses, outcomes.groups, buffer_tokens=buffer_tokens)


def scores_of(ruling: Ruling, rows: Sequence[Row]) -> Floats:
    """As the judge will score them [N]; minus infinity for what it cannot."""
    scorer = Scorer(ruling)
    return np.array(
        [scorer.score(row.question, row.evidence.beginning(ruling.buffer_tokens)) for row in rows]
    )


def _promise(threshold: Threshold, scores: Floats, tested: Outcomes, *, cascade: bool) -> Promise:
    kept = np.zeros(len(tested), bool) if threshold.score is None else scores >= threshold.score
    weights = resampled_weights(tested.groups)
    served = np.where(kept, tested.small_right, tested.large_right)
    asked = tested.escalated_cost if cascade else tested.large_cost
    paid = (tested.small_cost if cascade else kept * tested.small_cost) + ~kept * asked
    right = tested.large_right
    return Promise(
        threshold,
        float(kept.mean()),
        _share(weights, served & right, right, tested.groups),
        _ratio(weights, served, right),
        _ratio(weights, paid, tested.large_cost),
        threshold.score is not None and float(paid.mean()) < tested.dear_cost,
    )


def _objection(curve: Curve, promises: Sequence[Promise], delta: float) -> str | None:
    gain = curve.mean_gain
    if gain.low <= 0:
        return (
            f"right answers beside a random mix of the same cost: {100 * gain.value:+.1f} points "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}], not surely more"
        )
    if any(promise.pays for promise in promises):
        return None
    if able := [promise.threshold.quality for promise in promises if promise.threshold.score is not None]:
        return f"keeping the promise {min(able):g} costs no less than always asking the large tier"
    mildest = min(promise.threshold.quality for promise in promises)
    return (
        f"no promise can be kept but by always asking the large tier: {promises[0].threshold.questions} questions that it "
        f"answers right are few, or the losses among them many ({clean_labels_needed(1 - mildest, 1 - delta)} without a "
        f"loss would allow {mildest:g})"
    )


def _mean(weights: Floats, values: NDArray[np.generic]) -> Estimate:
    return _ratio(weights, values, np.ones(len(values)))


def _share(
    weights: Floats, good: NDArray[np.bool_], of: NDArray[np.bool_], groups: NDArray[np.int64]
) -> Estimate:
    """Where all are good, draws show no other: then from the exact bound of Clopper and Pearson (1934) on."""
    found = _ratio(weights, good, of)
    if not of.any() or (good != of).any():
        return found
    return Estimate(1.0, LOW ** (1 / len(np.unique(groups[of]))), 1.0)


def _ratio(weights: Floats, above: NDArray[np.generic], below: NDArray[np.generic]) -> Estimate:
    """Of the sums; of draws without anything below, nothing is known."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return estimate((weights @ above.astype(float)) / (weights @ below.astype(float)))
