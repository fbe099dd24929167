"""Replays a labelled stream through a semantic cache. Knows the true answers, which no policy sees before it has decided.

A request whose text is stored is an exact hit and no policy's business. Else the nearest stored text is a near
hit: the policy serves it, or the model answers, which labels the near hit and stores the request. What was served
is not stored, so every policy has a cache of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from penstock.cache.trust.bound import lower, upper
from penstock.cache.trust.features import Features, Neighbourhood, features

# Stored entries around a near hit whose answers are compared.
AROUND = 6
# Nearest texts known of each text, stored or not.
KNOWN = 192


class Policy(Protocol):
    floor: float
    """Cosines below it are no near hits."""
    keeps_repeats: bool
    """Whether a request whose near hit was right is stored, too."""

    def decide(self, entry: int, measured: Callable[[], Features], cosine: float) -> bool:
        """Whether to serve. Called in turn with `learn`, which follows when it does not."""

    def learn(self, same: bool, number: int) -> None:
        """What the model said about the last decision; `number` of the request."""


@dataclass
class Stream:
    """Requests in order: texts, true answers, and of each distinct text its nearest ones."""

    name: str
    texts: list[str]
    answers: list[str]
    vectors: np.ndarray  # [distinct texts, dims]
    nearest: np.ndarray  # [distinct texts, KNOWN], the nearest first
    cosines: np.ndarray  # as above
    distinct: list[int] = field(default_factory=list)  # of each request, its row above
    measured: dict[tuple[int, int, int, float], Features] = field(default_factory=dict)


@dataclass
class Outcome:
    requests: int = 0
    exact: int = 0
    near: int = 0
    hits: int = 0
    wrong: int = 0
    first_hit: int = 0
    halves: list[tuple[int, int]] = field(default_factory=list)

    def error(self) -> float:
        return self.wrong / self.hits if self.hits else 0.0

    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson, two-sided, 95 %."""
        if not self.hits:
            return 0.0, 1.0
        return lower(self.wrong, self.hits, 0.975), upper(self.wrong, self.hits, 0.975)


def stream(
    name: str, texts: list[str], answers: list[str], embed: Callable[[list[str]], np.ndarray]
) -> Stream:
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = embed(list(rows))
    known = min(KNOWN, len(rows) - 1)
    nearest = np.empty((len(rows), known), np.int32)
    cosines = np.empty((len(rows), known), np.float32)
    for begin in range(0, len(rows), 1000):
        block = vectors[begin : begin + 1000] @ vectors.T
        block[np.arange(len(block)), np.arange(begin, begin + len(block))] = -2
        best = np.argpartition(-block, known - 1, axis=1)[:, :known]
        found = np.take_along_axis(block, best, axis=1)
        order = np.argsort(-found, axis=1)
        nearest[begin : begin + 1000] = np.take_along_axis(best, order, axis=1)
        cosines[begin : begin + 1000] = np.take_along_axis(found, order, axis=1)
    return Stream(name, texts, answers, vectors, nearest, cosines, [rows[text] for text in texts])


def replay(stream: Stream, policy: Policy) -> Outcome:
    outcome, answer_of = Outcome(requests=len(stream.texts)), {}
    text_of: dict[int, str] = {}
    for number, (row, text, answer) in enumerate(
        zip(stream.distinct, stream.texts, stream.answers, strict=True)
    ):
        if number == len(stream.texts) // 2:
            outcome.halves.append((outcome.hits, outcome.wrong))
        if row in answer_of:
            outcome.exact += 1
            continue
        around = _stored(stream, row, answer_of, policy.floor)
        if around:
            outcome.near += 1
            entry, cosine = around[0]
            same = answer_of[entry] == answer

            def measured(
                row: int = row,
                entry: int = entry,
                cosine: float = cosine,
                around: list = around,
                text: str = text,
            ) -> Features:
                agreeing = sum(answer_of[other] == answer_of[entry] for other, _ in around[1:])
                rival = max((c for other, c in around if answer_of[other] != answer_of[entry]), default=0.0)
                key = (row, entry, agreeing, rival)
                if key not in stream.measured:
                    stream.measured[key] = features(
                        text, text_of[entry], cosine, Neighbourhood(agreeing, rival)
                    )
                return stream.measured[key]

            if policy.decide(entry, measured, cosine):
                outcome.hits += 1
                outcome.wrong += not same
                outcome.first_hit = outcome.first_hit or number
                continue
            policy.learn(same, number)
            if same and not policy.keeps_repeats:
                continue
        answer_of[row], text_of[row] = answer, text
    outcome.halves.append((outcome.hits - outcome.halves[0][0], outcome.wrong - outcome.halves[0][1]))
    return outcome


def _stored(stream: Stream, row: int, stored: dict[int, str], floor: float) -> list[tuple[int, float]]:
    """The nearest stored texts and their cosines."""
    found: list[tuple[int, float]] = []
    for other, cosine in zip(stream.nearest[row].tolist(), stream.cosines[row].tolist(), strict=True):
        if cosine < floor or len(found) == AROUND:
            return found
        if other in stored:
            found.append((other, cosine))
    if not found and stored:
        rows = list(stored)
        cosines = stream.vectors[rows] @ stream.vectors[row]
        best = int(cosines.argmax())
        if cosines[best] >= floor:
            found.append((rows[best], float(cosines[best])))
    return found
