"""Replays a labelled stream through a semantic cache. Knows the true answers, which no policy sees before it has decided.

A request whose text is stored is an exact hit and no policy's business. Else the nearest stored text is a near hit: the
policy serves it, or the model answers, which labels the near hit and stores the request. What was served is not stored,
so every policy has a cache of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from penstock.cache.trust.bound import lower, upper
from penstock.cache.trust.features import Features, Neighbourhood, features
from penstock.cache.trust.guards import GUARDS, Facets, GuardSet, differing

# Stored entries around a near hit whose answers are compared.
AROUND = 6
# Nearest texts known of each text, stored or not.
KNOWN = 192


@dataclass
class Stream:
    """Requests in order, and of each distinct text (a row) its nearest ones."""

    name: str
    rows: list[int]
    answers: list[str]
    texts: list[str]  # [distinct texts]
    vectors: np.ndarray  # [distinct texts, dims]
    nearest: np.ndarray  # [distinct texts, KNOWN] rows, the nearest first
    cosines: np.ndarray  # as above
    compared: dict[tuple[int, int, Neighbourhood], Features] = field(default_factory=dict)
    facets: dict[int, Facets] = field(default_factory=dict)

    def facets_of(self, row: int) -> Facets:
        if row not in self.facets:
            self.facets[row] = Facets.of(self.texts[row])
        return self.facets[row]


class NearHit:
    """The nearest stored text of a request."""

    def __init__(
        self, stream: Stream, row: int, around: list[tuple[int, float]], answers: dict[int, str]
    ) -> None:
        self.entry, self.cosine = around[0]
        self.answer = answers[self.entry]
        self._stream, self._row = stream, row
        self._around = [(answers[other], cosine) for other, cosine in around[1:]]

    def refused(self, guards: GuardSet) -> bool:
        """Whether the questions differ in what is guarded."""
        facets = self._stream.facets_of
        return differing(facets(self._row), facets(self.entry), GUARDS[guards]) is not None

    def features(self) -> Features:
        around = Neighbourhood(
            agreeing=sum(answer == self.answer for answer, _ in self._around),
            rival=max((cosine for answer, cosine in self._around if answer != self.answer), default=0.0),
        )
        key = (self._row, self.entry, around)
        if key not in self._stream.compared:
            texts = self._stream.texts
            self._stream.compared[key] = features(texts[self._row], texts[self.entry], self.cosine, around)
        return self._stream.compared[key]


class Policy(Protocol):
    floor: float
    """Cosines below it are no near hits."""
    keeps_repeats: bool
    """Whether a request whose near hit was right is stored, too."""

    def serves(self, near: NearHit) -> bool: ...

    def learn(self, same: bool, number: int) -> None:
        """What the model said about the near hit that was not served; `number` of the request."""


@dataclass
class Outcome:
    requests: int = 0
    exact: int = 0
    hits: int = 0
    wrong: int = 0
    first_hit: int | None = None

    def error(self) -> float:
        return self.wrong / self.hits if self.hits else 0.0

    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson, two-sided, 95 %."""
        if not self.hits:
            return 0.0, 1.0
        return lower(self.wrong, self.hits, 0.975), upper(self.wrong, self.hits, 0.975)


def stream(name: str, requests: list[tuple[str, str]], embed: Callable[[list[str]], np.ndarray]) -> Stream:
    """From (text, answer id) pairs; `embed` makes unit vectors."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(text for text, _ in requests))}
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
    return Stream(
        name,
        [rows[text] for text, _ in requests],
        [answer for _, answer in requests],
        list(rows),
        vectors,
        nearest,
        cosines,
    )


def replay(stream: Stream, policy: Policy) -> Outcome:
    outcome, stored = Outcome(requests=len(stream.rows)), {}
    for number, (row, answer) in enumerate(zip(stream.rows, stream.answers, strict=True)):
        if row in stored:
            outcome.exact += 1
            continue
        if around := _around(stream, row, stored, policy.floor):
            near = NearHit(stream, row, around, stored)
            same = near.answer == answer
            if policy.serves(near):
                outcome.hits += 1
                outcome.wrong += not same
                outcome.first_hit = number if outcome.first_hit is None else outcome.first_hit
                continue
            policy.learn(same, number)
            if same and not policy.keeps_repeats:
                continue
        stored[row] = answer
    return outcome


def _around(stream: Stream, row: int, stored: dict[int, str], floor: float) -> list[tuple[int, float]]:
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
