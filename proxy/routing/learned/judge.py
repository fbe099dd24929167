"""Decides by a router file whether the small tier is good enough: with its answer seen, or from the question alone.

Pure: reads its file once, and asks nobody. What the promises mean, and how they are kept, is said where they are made:
penstock.tune.router.promise.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....errors import ConfigError
from .features import AGREEMENT
from .router_file import RouterFile, Ruling, Threshold, read_router_file
from .values import Evidence, Question, Verdict

Floats = NDArray[np.float64]

# More than any probability: nothing is accepted.
NEVER = 2.0
_REASONS = 3


class Judge:
    """What a router file says, ready to be asked.

    Attributes:
        small, large: the tiers it was made for.
        qualities: the promises that have been tried, lowest first.
    """

    def __init__(self, found: RouterFile) -> None:
        self.small, self.large = found.small, found.large
        self.embedding_model = found.embedding_model
        self._cascade = {ruling.buffer_tokens: _Scorer(ruling) for ruling in found.cascade}
        self._predictive = None if found.predictive is None else _Scorer(found.predictive)
        one = next(iter(self._cascade.values()), self._predictive)
        self.qualities = () if one is None else tuple(sorted(one.thresholds))

    @classmethod
    def load(cls, path: str | Path) -> "Judge":
        """Raises ConfigError where the file is none, or of another format."""
        return cls(read_router_file(Path(path)))

    @property
    def wants_agreement(self) -> bool:
        """A second, sampled answer must be drawn for `Evidence.agreement`: without it nothing is kept."""
        return any(AGREEMENT in scorer.ruling.inputs.features for scorer in self._cascade.values())

    def check(
        self,
        *,
        small: str,
        large: str,
        predictive: bool = False,
        quality: float | None = None,
        buffer_tokens: int = 0,
    ) -> None:
        """Whether a route may use it so; to be called before it is asked.

        Raises ConfigError for other tiers, a promise or a number of tokens that it was not made for, or a question to be
        judged alone where that was found to tell too little.
        """
        if (small, large) != (self.small, self.large):
            raise ConfigError(
                f"The router file was made for the tiers {self.small!r} and {self.large!r}, not {small!r} and {large!r}; "
                f"name those, or run `penstock tune router --tiers {small} {large}`.",
                param="router",
            )
        if predictive and self._predictive is None:
            raise ConfigError(
                "The router file has nothing that picks a tier from the question alone: when it was made, that did not beat "
                'picking one at random. Use policy = "cascade".',
                param="policy",
            )
        if not predictive and buffer_tokens not in self._cascade:
            known = ", ".join(map(str, sorted(self._cascade))) or "none"
            raise ConfigError(
                f"buffer_tokens is {buffer_tokens}; the router file judges answers by {known} tokens (0: all). Use one of "
                f"these, or run `penstock tune router --buffer-tokens {buffer_tokens}`.",
                param="buffer_tokens",
            )
        if quality is not None and quality not in self.qualities:
            known = ", ".join(map(str, self.qualities))
            raise ConfigError(
                f"quality is {quality}; the router file has thresholds for {known}. Use one of these, or run `penstock tune "
                f"router --qualities {quality}`.",
                param="quality",
            )

    def keeps(
        self, question: Question, evidence: Evidence, quality: float | None = None, *, buffer_tokens: int = 0
    ) -> Verdict:
        """Whether the answer that `evidence` is of, or begins, is good enough.

        Args:
            quality: the promise; None: the strictest for which anything may be kept.
            buffer_tokens: as many tokens have been written, or the answer is finished before; 0: it is finished. More are
                not looked at.
        """
        return self._cascade[buffer_tokens].judge(question, evidence.beginning(buffer_tokens), quality)

    def picks(self, question: Question, quality: float | None = None) -> Verdict:
        """Whether the small tier may answer, as far as the question tells."""
        assert self._predictive is not None, "check() refuses"
        return self._predictive.judge(question, None, quality)


class _Scorer:
    """One ruling, as arrays."""

    def __init__(self, ruling: Ruling) -> None:
        self.ruling = ruling
        self.thresholds = {threshold.quality: threshold for threshold in ruling.thresholds}
        self._means, self._scales = np.array(ruling.means), np.array(ruling.scales)
        self._weights = np.array(ruling.weights)

    def threshold(self, quality: float | None) -> Threshold:
        if quality is not None:
            return self.thresholds[quality]
        able = [quality for quality, threshold in self.thresholds.items() if threshold.score is not None]
        return self.thresholds[max(able or self.thresholds)]

    def judge(self, question: Question, evidence: Evidence | None, quality: float | None) -> Verdict:
        threshold = self.threshold(quality)
        needed = NEVER if threshold.score is None else self._probability(threshold.score)
        if missing := self.ruling.inputs.missing(question, evidence):
            return Verdict(False, 0.0, needed, (missing,))
        values = self.ruling.inputs.values(question, evidence)
        parts = self._weights * (values - self._means) / self._scales
        score = float(parts.sum() + self.ruling.offset)
        probability = self._probability(score)
        if threshold.score is None:
            return Verdict(False, probability, needed, ("no_threshold",))
        accept = score >= threshold.score
        return Verdict(accept, probability, needed, self._reasons(parts if accept else -parts))

    def _reasons(self, parts: Floats) -> tuple[str, ...]:
        """What spoke most for the verdict, where more is for it."""
        strongest = [int(i) for i in np.argsort(-parts)[:_REASONS] if parts[i] > 0]
        return tuple(dict.fromkeys(map(self.ruling.inputs.name, strongest)))

    def _probability(self, score: float) -> float:
        return float(np.interp(score, self.ruling.scores, self.ruling.probabilities))
