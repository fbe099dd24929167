"""Why a question would or would not be answered from what is kept: its neighbours, and what each is good for.

Partitions are found through the index: a row of each leads to one entry, and its question knows the partition's name.
That costs a few reads a partition, where reading the questions of all entries would take seconds, and needs nothing
kept beside them.
"""

from typing import TYPE_CHECKING, Literal

import msgspec

from .near import Mode
from .opened import OpenedCache
from .trust.guards import DEFAULT_GUARDS, GuardSet
from .trust.ruling import refusal
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

    rung: Literal["draft", "none"]
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
) -> Verdict:
    """What the answer of `neighbour`, the `rank`-th nearest from 0, is good for where `text` is asked.

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
    if mode == "trusted":
        refused = refusal(text, neighbour.question.text, guards)
        reasons.append(
            "nothing differs that would forbid to serve it unverified; what verification has taught is not looked at here"
            if refused is None
            else f"never served unverified: the questions differ ({refused})"
        )
    return Verdict("draft", tuple(reasons))
