"""What may tell a good answer from a bad one, as numbers: from log-probabilities, and from the words of a question.

Which of them says how much is not known here. Log-probabilities of tokens at the low end of an answer say more than their
sum or mean (Gupta et al., Language model cascades: token-level uncertainty and beyond, ICLR 2024): hence the quantiles.
Whether a second, sampled answer agrees is not among them: it cost the small tier twice and told nothing more (bench/LOG.md).
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from .values import Evidence, Question

Floats = NDArray[np.float64]

# Alternatives of a token that are looked at: the most that OpenAI's completions give.
TOP = 5
# Characters of a question: a megabyte would keep an event loop busy for a fifth of a second.
LOOKED_AT = 8192
# Less likely than this is as good as impossible, which some servers write as -9999.
_FLOOR = -20.0
_UNSURE = math.log(0.5)
_WORD = re.compile(r"\w+")

EVIDENCE_FEATURES = (
    "mean_logprob",
    "sum_logprob",
    "lowest_logprob",
    "low_logprob",
    "first_logprob",
    "unsure_tokens",
    "mean_entropy",
    "highest_entropy",
    "mean_margin",
    "lowest_margin",
    "answer_length",
    "prompt_length",
    "finished",
)
QUESTION_FEATURES = (
    "question_length",
    "question_words",
    "longest_word",
    "digits",
    "symbols",
    "capitals",
    "question_mark",
    "lines",
)


class Inputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which numbers are looked at, in this order.

    Attributes:
        features: names, of those above.
        word_buckets: how many of hashed words and pairs of words; 0: none.
        vector_width: of the question's embedding; 0: none.
    """

    features: tuple[str, ...]
    word_buckets: int = 0
    vector_width: int = 0

    @property
    def width(self) -> int:
        return len(self.features) + self.word_buckets + self.vector_width

    @property
    def wants_evidence(self) -> bool:
        return not set(self.features) <= set(QUESTION_FEATURES)

    def name(self, number: int) -> str:
        """Of the number at this place."""
        if number < len(self.features):
            return self.features[number]
        return "words" if number < len(self.features) + self.word_buckets else "meaning"

    def missing(self, question: Question, evidence: Evidence | None) -> str | None:
        """What they cannot do without, and is not there."""
        if self.wants_evidence and (evidence is None or not evidence.chosen):
            return "no_logprobs"
        if self.vector_width and len(question.vector or ()) != self.vector_width:
            return "no_embedding"
        return None

    def values(self, question: Question, evidence: Evidence | None) -> Floats:
        """[width]; nothing is `missing`."""
        known = dict(zip(QUESTION_FEATURES, _question_values(question), strict=True))
        if self.wants_evidence and evidence is not None:
            known |= dict(zip(EVIDENCE_FEATURES, _evidence_values(evidence), strict=True))
        named = np.array([known[name] for name in self.features])
        vector = np.asarray(question.vector if self.vector_width else (), dtype=np.float64)
        return np.concatenate((named, _word_values(question, self.word_buckets), vector))


def _evidence_values(evidence: Evidence) -> Floats:
    """[13], of an answer of at least one token."""
    chosen = np.maximum(np.asarray(evidence.chosen, dtype=np.float64), _FLOOR)
    entropies, margins = _spread(evidence.best, len(chosen))
    return np.array(
        (
            chosen.mean(),
            chosen.sum(),
            chosen.min(),
            np.quantile(chosen, 0.1),
            chosen[0],
            math.log1p((chosen < _UNSURE).sum()),
            entropies.mean(),
            entropies.max(),
            margins.mean(),
            margins.min(),
            math.log1p(len(chosen)),
            math.log1p(evidence.prompt_tokens),
            float(evidence.finished),
        )
    )


def _question_values(question: Question) -> Floats:
    """[8]."""
    text = question.text[:LOOKED_AT]
    words = _WORD.findall(text)
    return np.array(
        (
            math.log1p(len(text)),
            math.log1p(len(words)),
            math.log1p(max(map(len, words), default=0)),
            math.log1p(sum(map(str.isdigit, text))),
            math.log1p(sum(not (c.isalnum() or c.isspace()) for c in text)),
            math.log1p(sum(map(str.isupper, text))),
            float("?" in text),
            math.log1p(text.count("\n")),
        )
    )


def _word_values(question: Question, buckets: int) -> Floats:
    """The question's words and pairs of words, each with the sign and in the bucket that its hash names [buckets], of unit
    length (feature hashing: Weinberger et al., ICML 2009)."""
    counts = np.zeros(buckets)
    if not buckets:
        return counts
    words = [word.casefold() for word in _WORD.findall(question.text[:LOOKED_AT])]
    for term in (*words, *map(" ".join, pairwise(words))):
        place = xxhash.xxh3_64_intdigest(term.encode())
        counts[(place >> 1) % buckets] += 1 if place & 1 else -1
    return counts / max(1.0, float(np.linalg.norm(counts)))


def _spread(best: Sequence[Sequence[float]], tokens: int) -> tuple[Floats, Floats]:
    """Entropies in nats [T], what is not among the best counted as one token; margins of the best to the second [T]."""
    table = np.full((tokens, TOP), _FLOOR)
    for row, values in zip(table, best, strict=False):
        given = values[:TOP]
        row[: len(given)] = np.maximum(given, _FLOOR)
    shares = np.exp(table)
    rest = np.clip(1 - shares.sum(axis=1), 1e-9, 1)
    entropies = -(shares * table).sum(axis=1) - rest * np.log(rest)
    return np.maximum(entropies, 0.0), table[:, 0] - table[:, 1]
