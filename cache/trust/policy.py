"""Which near hits are served unverified, so that at most `max_error_rate` of *those served* are wrong.

The bound is on wrong answers among trusted hits, not among all requests: a cache that serves one request in twenty does
not get to be wrong twenty times as often on it. It holds with `confidence` while near hits of tomorrow are like
the labelled ones; what has drifted is noticed by exploration, and only then. Nothing is served cold: 1 % at
confidence 0.95 takes 408 clean labels.

A near hit that is not served goes to the model as a draft, which labels it for nothing. Of those that would be served a few
are verified all the same (explored): their labels keep the evidence alive, and each stands for those that were served. Where
nothing may be served, every near hit is labelled, and each stands for itself. Where labels come from sampled shadow
calls, the sampling may depend on nothing but the decision.

Pure: the caller owns time, randomness and the rows' storage, and has already applied its guards.

    decision = policy.decide(Observation(entry, features(query, neighbour, cosine, around)), random())
    if not decision.serve:                                      # the model answers, with the completion as its draft
        row = policy.learn(decision, same_answer(completion, answer).same, time())
        store(row)                                              # and other workers: policy.fold(row)
        if policy.refit_due:
            policy.refit()                                      # in a thread that alone has the policy
"""

import math
from enum import StrEnum

import msgspec
import numpy as np

from .calibration import Calibration, calibrate, fewest_labels
from .evidence import Evidence
from .features import Features
from .labels import CLOSE, CONTRADICTED, NO_ROWS, SAME, TRUSTED, WIDTH, Rows, merge, read, row

# Explored share of what could be served: the lowest once evidence is plenty, the highest when it is about to fade.
_LEAST_EXPLORED, _MOST_EXPLORED = 0.02, 0.25
# Labels kept, in multiples of the fewest that certify anything: older ones fade.
_WINDOW = 12


class Reason(StrEnum):
    TRUSTED = "trusted"
    EXPLORED = "explored"
    SERVABLE = "servable"
    """Good enough, but the request or the server wants the model's own answer."""
    COLD = "cold"
    """Too few labels, or too many wrong ones, for any score."""
    BELOW = "below"
    CONTRADICTED = "contradicted"
    """The entry's own record: verified to be wrong at this or a higher cosine."""


class Observation(msgspec.Struct, frozen=True):
    """A near hit. `entry`: 64 bits that name the stored entry, well mixed."""

    entry: int
    features: Features


class Decision(msgspec.Struct, frozen=True):
    """Attributes:
    serve: answer with the stored completion.
    explore: it could be served, but is to be verified all the same.
    score, threshold: log-odds of "same answer", and what it had to reach.
    reason: why.
    observation, values, flags, standing_for: what a label of this near hit will say.
    """

    serve: bool
    explore: bool
    score: float
    threshold: float
    reason: Reason
    observation: Observation
    values: tuple[float, ...]
    flags: int
    standing_for: int

    def label(self, same: bool, at: float) -> bytes:
        """A row: whether the model's answer was the stored one. `at`: seconds since the epoch."""
        entry, differing = self.observation.entry, self.observation.features.differing
        return row(at, entry, self.flags | (SAME if same else 0), self.standing_for, self.values, differing)

    def is_refuted(self, same: bool) -> bool:
        """Whether a wrong answer would have been served, so that the threshold was too low."""
        return self.flags & TRUSTED != 0 and not same


class TrustPolicy:
    """Decides from labels. Not thread-safe; `fold` and `refit` take milliseconds and belong off the event loop.

    Args:
        max_error_rate: share of wrong answers allowed among trusted hits, above 0 and at most 0.2.
        confidence: of the bound.

    Raises ValueError for values out of range.
    """

    def __init__(self, max_error_rate: float = 0.01, confidence: float = 0.95) -> None:
        if not 0 < max_error_rate <= 0.2:
            raise ValueError(f"max_error_rate is {max_error_rate}; it must be above 0 and at most 0.2.")
        if not 0.5 <= confidence < 1:
            raise ValueError(f"confidence is {confidence}; it must be at least 0.5 and below 1.")
        self.max_error_rate, self.confidence = max_error_rate, confidence
        self._fewest = fewest_labels(max_error_rate, confidence)
        self.capacity = max(4096, _WINDOW * self._fewest)
        self._rows: Rows = NO_ROWS
        self._new: list[bytes] = []
        self._evidence = Evidence()
        self._failed = False
        self.calibration = Calibration((0.0,) * WIDTH, 0.0)
        self._threshold = math.inf

    def decide(self, observation: Observation, chance: float, *, may_serve: bool = True) -> Decision:
        """What to do with a near hit whose guards have passed.

        Args:
            chance: a fresh draw, uniform from 0 to 1.
            may_serve: False where the model answers whatever is decided.
        """
        features = observation.features
        values = features.numbers + self._evidence.numbers(observation.entry, features)
        calibration = self.calibration
        score = calibration.offset + sum(map(float.__mul__, calibration.weights, values))
        serve, explore, standing_for = False, False, 1
        flags = CLOSE if score >= calibration.close else 0
        # The stored cosine is a float32.
        if features.numbers[0] <= self._evidence.tally(observation.entry).highest_different + 1e-6:
            reason, flags = Reason.CONTRADICTED, flags | CONTRADICTED
        elif score < self._threshold:
            reason = Reason.COLD if math.isinf(self._threshold) else Reason.BELOW
        else:
            flags |= TRUSTED | CLOSE
            if may_serve:
                explore, standing_for = chance < self.exploration, round(1 / self.exploration)
                serve = not explore
                reason = Reason.EXPLORED if explore else Reason.TRUSTED
            else:
                # All such hits are labelled. Were one to stand for fifty, the few wrong ones among the far more numerous
                # labels below the threshold would weigh nothing beside it, and the threshold would sink below them.
                reason = Reason.SERVABLE
        return Decision(
            serve, explore, score, self._threshold, reason, observation, values, flags, standing_for
        )

    @property
    def exploration(self) -> float:
        """Share of what could be served that is verified: enough that the evidence is renewed before it fades."""
        scarce = 4 * self._fewest / max(self.calibration.labels, 1)
        return min(max(_LEAST_EXPLORED * scarce, _LEAST_EXPLORED), _MOST_EXPLORED)

    def learn(self, decision: Decision, same: bool, at: float) -> bytes:
        """Take in what verification found; returns the row to be stored and given to the other workers' `fold`.

        Args:
            decision: what `decide` returned for this near hit.
            same: whether the model's answer was the stored one.
            at: seconds since the epoch; orders the rows of several workers.
        """
        label = decision.label(same, at)
        self._new.append(label)
        self._evidence.count(decision.observation.entry, decision.observation.features, same)
        if decision.is_refuted(same):
            # At once, before any refit: nothing that looks no better than this failure is served.
            self._threshold = max(self._threshold, math.nextafter(decision.score, math.inf))
            self._failed = True
        return label

    @property
    def refit_due(self) -> bool:
        """After a failure, or once labels have grown by a twentieth."""
        return self._failed or len(self._new) >= max(64, len(self._rows) // 20)

    def refit(self) -> None:
        """Make score and threshold anew from all labels (about 10 ms for 4,000)."""
        if self._new:
            self.fold(b"")
        self._failed = False
        if len(self._rows) < self._fewest:
            return
        self.calibration = calibrate(self._rows, self.max_error_rate, self.confidence)
        self._threshold = self.calibration.threshold

    def fold(self, rows: bytes) -> None:
        """Add rows that other workers, or this one before it was restarted, have stored. Repeats do no harm.

        Counts of entries and words take effect at once, the threshold with the next `refit`.
        """
        added = np.concatenate((read(b"".join(self._new)), read(rows)))
        self._rows = merge(self._rows, added, self.capacity)
        self._new.clear()
        self._evidence.recount(self._rows)

    def pack(self) -> bytes:
        """All rows in use: what `fold` of another policy takes."""
        return self._rows.tobytes() + b"".join(self._new)
