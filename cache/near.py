"""Near hits: completions kept for questions that mean nearly the same. Embeds, searches, and says what a find is good for.

Knows no wire format and no engine. A find is at least a *draft*: what the model is likely to say, to be verified by it.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Literal

import msgspec

from ..errors import PenstockError
from .completion_cache import CompletionCache
from .embedder import Embedder
from .key import CacheKey
from .values import CachedCompletion, Neighbour, Question

if TYPE_CHECKING:
    from .semantic.codes import Floats

log = logging.getLogger(__name__)

Mode = Literal["off", "draft", "trusted"]

# Below it the answers of the built-in model's questions share too little to be worth verifying (bench/LOG.md).
DRAFT_SIMILARITY = 0.8
# Searches under way beyond which a question goes without: they would only wait for each other.
MAX_SEARCHES = 32


class Near(msgspec.Struct, frozen=True):
    """What is known of one question. Without an `embedding` it could not be searched for, and will not be found."""

    question: Question
    embedding: "Floats | None" = None
    neighbour: Neighbour | None = None


class NearHits:
    """Searches a cache by meaning. Of one event loop.

    Args:
        cache: outlives it.
        embedder: started by `start`; whoever made it shuts it down.
        mode: the most that may be made of a find.
        draft_similarity: least cosine of two questions for one's completion to be a draft for the other.
    """

    def __init__(
        self,
        cache: CompletionCache,
        embedder: Embedder,
        *,
        mode: Mode = "draft",
        draft_similarity: float = DRAFT_SIMILARITY,
    ) -> None:
        self.mode = mode
        self._cache = cache
        self._embedder = embedder
        self._draft_similarity = draft_similarity
        self._searches = 0
        self._failing = False
        self.is_ready = False

    async def start(self) -> None:
        """Loads the embedder; until then, and where that fails, nothing is found by meaning. Never raises PenstockError."""
        try:
            await self._embedder.embed(["What do you mean?"])
            self._cache.open_index(self._embedder.dims)
        except PenstockError as error:
            log.error("the cache finds exact repeats only: %s", error.message)
        else:
            self.is_ready = True

    @property
    def fingerprint(self) -> str:
        """Of the embedder: part of every partition. Only when ready."""
        return self._embedder.fingerprint

    async def search(self, question: Question, *, find: bool = True) -> Near:
        """The nearest completion, where it is near enough to be of use. Never raises PenstockError.

        `find` False only embeds the question, for `store`.
        """
        if not self.is_ready or self._searches >= MAX_SEARCHES:
            return Near(question)
        self._searches += 1
        try:
            embedding = (await self._embedder.embed([question.text]))[0]
            if not find:
                return Near(question, embedding)
            found = await asyncio.to_thread(self._cache.nearest, question.partition, embedding)
        except PenstockError as error:
            if not self._failing:
                log.warning("a question could not be searched for by its meaning: %s", error.message)
            self._failing = True
            return Near(question)
        finally:
            self._searches -= 1
        self._failing = False
        if not found or found[0].similarity < self._draft_similarity:
            return Near(question, embedding)
        self._cache.touch(found[0].place)
        return Near(question, embedding, found[0])

    def store(
        self, key: CacheKey, near: Near, completion: CachedCompletion, *, ttl: float | None = None
    ) -> None:
        """Keeps a completion so that it is found by the meaning of its question."""
        self._cache.store(key, completion, ttl=ttl, question=near.question, embedding=near.embedding)
