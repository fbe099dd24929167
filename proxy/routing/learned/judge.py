"""Decides by a router file whether the small tier is good enough: with its answer seen, or from the question alone.

Pure: reads its file once, and asks nobody. What the promises mean, and how they are kept, is said where they are made:
penstock.tune.router.promise.
"""

from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from ....errors import ConfigError
from .router_file import RouterFile, Ruling, Threshold, read_router_file
from .scorer import Scorer
from .values import Evidence, Promise, Question, Verdict

Floats = NDArray[np.float64]

# More than any probability: nothing is accepted.
NEVER = 2.0
_REASONS = 3


class Judge:
    """What a router file says, ready to be asked.

    Attributes:
        small, large: the tiers it was made for.
        embedding_model: whose vectors questions need, if they need any.
        fingerprint: of all that the file says.
    """

    def __init__(self, found: RouterFile) -> None:
        self.small, self.large = found.small, found.large
        self.embedding_model = found.embedding_model
        self.fingerprint = xxhash.xxh3_64_hexdigest(msgspec.json.encode(found))
        self._cascade = {ruling.buffer_tokens: _Bench(ruling) for ruling in found.cascade}
        self._predictive = None if found.predictive is None else _Bench(found.predictive)

    @classmethod
    def load(cls, path: str | Path) -> "Judge":
        """Raises ConfigError where the file is none, or of another format."""
        return cls(read_router_file(Path(path)))

    def check(
        self,
        *,
        small: str,
        large: str,
        predictive: bool = False,
        quality: float | None = None,
        buffer_tokens: int = 0,
    ) -> float:
        """Whether a route may use it so; to be called before it is asked. The promise that counts then.

        Raises ConfigError for other tiers, a promise or a number of tokens that it was not made for, a promise that only the
        large tier keeps, or a question to be judged alone where that was found to tell too little.
        """
        if (small, large) != (self.small, self.large):
            raise ConfigError(
                f"The router file was made for the tiers {self.small!r} and {self.large!r}, not {small!r} and {large!r}; "
                f"name those, or run `penstock tune router --tiers {small} {large}`.",
                param="router",
            )
        threshold = self._bench(predictive, buffer_tokens).checked_threshold(quality)
        if threshold.score is None:
            raise ConfigError(
                f"The router file has no threshold that keeps the promise {threshold.quality}: all would be answered by the "
                "large tier. Choose a lower quality, or run `penstock tune router` with more questions.",
                param="quality",
            )
        return threshold.quality

    def promise(
        self, *, predictive: bool = False, quality: float | None = None, buffer_tokens: int = 0
    ) -> Promise:
        """Of a use that was checked."""
        bench = self._bench(predictive, buffer_tokens)
        threshold = bench.threshold(quality)
        assert threshold.score is not None, "check() refuses"
        return Promise(threshold.quality, bench.scorer.probability(threshold.score))

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

    def _bench(self, predictive: bool, buffer_tokens: int) -> "_Bench":
        wanted = self._predictive if predictive else self._cascade.get(buffer_tokens)
        if wanted is not None:
            return wanted
        if predictive or not self._cascade:
            what, other = ("a question alone", "cascade") if predictive else ("an answer", "predictive")
            raise ConfigError(
                f"The router file has nothing that judges {what}: when it was made, that did not beat picking a tier at "
                f'random. Use policy = "{other}".',
                param="policy",
            )
        known = ", ".join(map(str, sorted(self._cascade)))
        raise ConfigError(
            f"buffer_tokens is {buffer_tokens}; the router file judges answers by {known} tokens (0: all). Use one of "
            f"these, or run `penstock tune router --buffer-tokens {buffer_tokens}`.",
            param="buffer_tokens",
        )


class _Bench:
    """One ruling: its score and its thresholds."""

    def __init__(self, ruling: Ruling) -> None:
        self.scorer = Scorer(ruling)
        self.thresholds = {threshold.quality: threshold for threshold in ruling.thresholds}

    def checked_threshold(self, quality: float | None) -> Threshold:
        """Raises ConfigError where there is none for this promise."""
        if quality is not None and quality not in self.thresholds:
            known = ", ".join(map(str, sorted(self.thresholds)))
            raise ConfigError(
                f"quality is {quality}; the router file has thresholds for {known}. Use one of these, or run `penstock tune "
                f"router --qualities {quality}`.",
                param="quality",
            )
        return self.threshold(quality)

    def judge(self, question: Question, evidence: Evidence | None, quality: float | None) -> Verdict:
        scorer, lowest = self.scorer, self.threshold(quality).score
        needed = NEVER if lowest is None else scorer.probability(lowest)
        if missing := scorer.inputs.missing(question, evidence):
            return Verdict(False, 0.0, needed, (missing,))
        parts = scorer.parts(question, evidence)
        score = scorer.total(parts)
        probability = scorer.probability(score)
        if lowest is None:
            return Verdict(False, probability, needed, ("no_threshold",))
        accept = score >= lowest
        return Verdict(accept, probability, needed, self._reasons(parts if accept else -parts))

    def threshold(self, quality: float | None) -> Threshold:
        if quality is not None:
            return self.thresholds[quality]
        able = [quality for quality, threshold in self.thresholds.items() if threshold.score is not None]
        return self.thresholds[max(able or self.thresholds)]

    def _reasons(self, parts: Floats) -> tuple[str, ...]:
        """What spoke most for the verdict."""
        strongest = [int(i) for i in np.argsort(-parts)[:_REASONS] if parts[i] > 0]
        return tuple(dict.fromkeys(map(self.scorer.inputs.name, strongest)))
