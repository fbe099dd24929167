"""Near hits: completions kept for questions that mean nearly the same. Embeds, searches, and says what a find is good for.

Knows no wire format and no engine. A find is a *draft*, what the model is likely to say and is to verify; or it is
*trusted*, where the labels that such verifications gave say that it may be served as it is.
"""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from ..errors import OverloadedError, PenstockError
from .completion_cache import CompletionCache
from .embedder import Embedder
from .key import CacheKey
from .trust.same_answer import SameAnswer, same_answer
from .values import CachedCompletion, Neighbour, Question, WholePrompt

if TYPE_CHECKING:
    from .semantic.codes import Floats
    from .trust.guards import GuardSet
    from .trust.ruling import Ruling

log = logging.getLogger(__name__)

Mode = Literal["off", "draft", "trusted"]
MODES: tuple[Mode, ...] = get_args(Mode)  # from the least to the most

# From 0.80 to 0.85 a quarter of the built-in model's answers are the kept one, and drafts still save an eighth of the time
# (bench/LOG.md); nothing was measured below.
DRAFT_SIMILARITY = 0.8
# The nearest, and those that say whether answers around it agree.
NEIGHBOURS = 5
# Searches under way beyond which a question goes without: they would only wait for each other.
MAX_SEARCHES = 32
# Until a busy embedder is tried again.
BUSY_SECONDS = 1.0


class Near(msgspec.Struct, frozen=True):
    """What is known of one question.

    Attributes:
        embedding: None where it could not be searched for, so that it will not be found either.
        neighbours: the nearest ones, if the first is near enough to be of use.
    """

    question: Question
    embedding: "Floats | None" = None
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def neighbour(self) -> Neighbour | None:
        return self.neighbours[0] if self.neighbours else None


class NearHits:
    """Searches a cache by meaning. Of one event loop.

    Args:
        cache: outlives it.
        embedder: started by `start`; whoever made it shuts it down.
        mode: the most that may be made of a find.
        draft_similarity: least cosine of two questions for one's completion to be a draft for the other.
        max_error_rate: share of wrong answers allowed among trusted hits.
        guards: name of the categories in which two questions may not differ for one's completion to be trusted.
        same: when two answers count as the same one.
    """

    def __init__(
        self,
        cache: CompletionCache,
        embedder: Embedder,
        *,
        mode: Mode = "draft",
        draft_similarity: float = DRAFT_SIMILARITY,
        max_error_rate: float = 0.01,
        guards: "GuardSet" = "lean",
        same: SameAnswer = "normalised",
    ) -> None:
        from .trust.keeper import TrustKeeper  # late, with numpy

        self.mode = mode
        self._cache = cache
        self._embedder = embedder
        self._draft_similarity = draft_similarity
        self._guards = guards
        self._same = same
        self._keeper = TrustKeeper(cache, max_error_rate=max_error_rate)
        self._searches = 0
        self._failing = False
        self.is_ready = False

    async def start(self) -> None:
        """Loads the embedder; until then, and where that fails, nothing is found by meaning. Never raises PenstockError."""
        while not self.is_ready:
            try:
                await self._embedder.embed(["What do you mean?"])
                await asyncio.to_thread(self._cache.open_index, self._embedder.dims)
                self.is_ready = True
            except OverloadedError as error:  # right after a restart, when all come at once
                await asyncio.sleep(error.retry_after or BUSY_SECONDS)
            except PenstockError as error:
                log.error("the cache finds exact repeats only: %s", error.message)
                return

    @property
    def fingerprint(self) -> str:
        """Of the embedder: part of every partition. Only when ready."""
        return self._embedder.fingerprint

    async def search(self, question: Question, *, find: bool = True) -> Near:
        """The nearest completion, where it is near enough to be of use. Never raises: without it the model answers.

        `find` False only embeds the question, for `store`.
        """
        if not self.is_ready or self._searches >= MAX_SEARCHES:
            return Near(question)
        self._searches += 1
        try:
            embedding = (await self._embedder.embed([question.text]))[0]
            if not find:
                return Near(question, embedding)
            look = partial(self._cache.nearest, question.partition, embedding, NEIGHBOURS)
            quick = self._cache.nearest_is_quick(question.partition)
            found = look() if quick else await asyncio.to_thread(look)
            if found and found[0].similarity >= self._draft_similarity:
                self._cache.touch(found[0].place)
                near = Near(question, embedding, tuple(found))
            else:
                near = Near(question, embedding)
        except Exception as error:
            # Not PenstockErrors alone: what is wrong with the index must not be a request's misfortune.
            if not self._failing:
                log.warning("a question could not be searched for by its meaning: %r", error)
            self._failing = True
            return Near(question)
        finally:
            self._searches -= 1
        self._failing = False
        return near

    async def rule(self, near: Near, *, may_serve: bool = True) -> "Ruling | None":
        """What may be made of the neighbour; None where there is none. `may_serve` False: it is verified in any case, and
        speaks for itself alone."""
        if near.neighbour is None:
            return None
        from .trust.ruling import candidate_of

        candidate = await asyncio.to_thread(candidate_of, near.question.text, near.neighbours, self._guards)
        return await self._keeper.rule(near.question.family, candidate, may_serve=may_serve)

    async def learn(
        self,
        near: Near,
        ruling: "Ruling | None",
        completion: CachedCompletion | None,
        *,
        exact: bool = False,
    ) -> tuple[str, bool] | None:
        """What the model itself answered to a question with a near hit that was not served teaches what can be trusted.

        `ruling`: what was said of it, if it was asked for. `completion` None: the model's answer was cut, where the kept
        one ended by itself. `exact`: only the same letters are the same answer.

        Returns the reason, and whether the model's answer is the same as the neighbour's; None where there is none.
        """
        ruling = ruling or await self.rule(near, may_serve=False)
        if ruling is None or near.neighbour is None:
            return None
        test = "exact" if exact else self._same
        same = completion is not None and all(
            same_answer(own.text, other.text, test).same
            for own, other in zip(completion.choices, near.neighbour.completion.choices, strict=True)
        )
        self._keeper.learn(near.question.family, ruling, same=same)
        return ruling.reason, same

    def store(
        self,
        key: CacheKey,
        near: Near,
        completion: CachedCompletion,
        *,
        ttl: float | None = None,
        prompt: WholePrompt | None = None,
    ) -> None:
        """Keeps a completion so that it is found by the meaning of its question."""
        self._cache.store(
            key, completion, ttl=ttl, question=near.question, embedding=near.embedding, prompt=prompt
        )
