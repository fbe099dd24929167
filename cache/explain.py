"""Why a question would or would not be answered from what is kept: its neighbours, and what each is good for.

Partitions are found through the index: a row of each leads to one entry, and its question knows the partition's name.
That costs a few reads a partition, where reading the questions of all entries would take seconds, and needs nothing
kept beside them.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from .near import Mode
from .opened import OpenedCache
from .trust.guards import DEFAULT_GUARDS, GuardSet
from .trust.ruling import candidate_of, refusal
from .values import Neighbour, Question

if TYPE_CHECKING:
    from .semantic.codes import Floats

# Between the embedding of a text and the one kept of it lies only the rounding to INT8 (cosine above 0.999).
_SAME_EMBEDDER = 0.99


class Partition(msgspec.Struct, frozen=True):
    """Questions that are compared with each other.

    Attributes:
        name: 40 bytes, the first 24 of which are tenant and namespace.
        sample: one of its questions, with its unit vector as kept: tells whether the embedder is still the same.
    """

    name: bytes
    entries: int
    sample: Question
    vector: "Floats"

    def was_embedded_by(self, embedding: "Floats") -> bool:
        """`embedding`: what an embedder makes of the sample's text."""
        return float(self.vector @ embedding) >= _SAME_EMBEDDER


class Verdict(msgspec.Struct, frozen=True):
    """The rung that a neighbour may serve on, and why not on a higher one."""

    rung: Literal["trusted", "draft", "none"]
    reasons: tuple[str, ...]


def partitions(cache: OpenedCache, prefix: bytes = b"") -> list[Partition]:
    """Those whose name begins with `prefix`, the largest first."""
    found: list[Partition] = []
    if cache.index is None:
        return found
    with cache.environment.reading() as txn:
        shapes = list(cache.index.shapes(txn))
    for shape in shapes:
        entry = cache.entry(shape.key)
        question = None if entry is None else entry.question
        if question is None or not question.partition.startswith(prefix):
            continue
        with cache.environment.reading() as txn:
            stored = cache.index.stored(txn, question.partition, shape.key)
        if stored is not None:
            vector = cache.index.unit(stored.vector)
            found.append(Partition(question.partition, shape.entries, question, vector))
    return sorted(found, key=lambda partition: -partition.entries)


def neighbours(
    cache: OpenedCache, partition: bytes, embedding: "Floats", *, k: int, now: float
) -> list[Neighbour]:
    """The nearest first, without those whose time is over. Raises PenstockError when the embedding is none of the index."""
    assert cache.index is not None
    found = []
    for match in cache.index.search(partition, embedding, k):
        entry = cache.entry(match.key)
        if entry is None or now >= entry.record.expires:
            continue
        completion, question = entry.completion, entry.question
        if completion is not None and question is not None:
            age = max(0.0, now - entry.record.created)
            found.append(Neighbour(match.key, match.similarity, question, completion, age))
    return found


def verdict(
    text: str,
    neighbour: Neighbour,
    *,
    rank: int,
    mode: Mode,
    draft_similarity: float,
    guards: GuardSet = DEFAULT_GUARDS,
    learnt: "Learnt | None" = None,
) -> Verdict:
    """What the answer of `neighbour`, the `rank`-th nearest from 0, is good for where `text` is asked.

    `learnt`: of the nearest, in mode "trusted".

    Every rule that decides on a rung has its say here.
    """
    reasons = []
    if mode == "off":
        reasons.append("cache_mode is off")
    if neighbour.similarity < draft_similarity:
        reasons.append(
            f"similarity {neighbour.similarity:.4f} is below cache_similarity {draft_similarity:g}"
        )
    if rank > 0:
        reasons.append("only the nearest is taken")
    if reasons:
        return Verdict("none", tuple(reasons))
    reasons.append(f"similarity {neighbour.similarity:.4f} reaches cache_similarity {draft_similarity:g}")
    if neighbour.question.text == text:
        reasons.append("the same words: the same request would be an exact hit")
    if mode != "trusted":
        return Verdict("draft", tuple(reasons))
    refused = refusal(text, neighbour.question.text, guards)
    if refused is not None:
        reasons.append(f"never served unverified: the questions differ ({refused})")
    elif learnt is not None:
        reasons.append(learnt.reason)
    trusted = refused is None and learnt is not None and learnt.serves
    return Verdict("trusted" if trusted else "draft", tuple(reasons))


class Learnt(msgspec.Struct, frozen=True):
    """What verification has taught about one near hit."""

    serves: bool
    reason: str


def learnt_of(
    cache: OpenedCache, text: str, found: Sequence[Neighbour], guards: GuardSet, max_error_rate: float
) -> Learnt | None:
    """About the nearest of `found`, as a server would see it; None where guards forbid it or nothing was found."""
    from .trust.overview import policy_of

    candidate = candidate_of(text, found, guards) if found else None
    if candidate is None or candidate.observation is None:
        return None
    policy = policy_of(cache, candidate.neighbour.question.family, max_error_rate)
    decision = policy.decide(candidate.observation, 1.0)
    if decision.serve:
        reason = f"its score of {decision.score:.2f} reaches the learnt threshold {decision.threshold:.2f}"
    elif math.isinf(decision.threshold):
        reason = f"nothing is served yet under a bound of {max_error_rate:.2%}: see `penstock cache trust`"
    else:
        reason = f"{decision.reason}: score {decision.score:.2f}, learnt threshold {decision.threshold:.2f}"
    return Learnt(decision.serve, reason)
