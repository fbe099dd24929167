"""One job's search for a completion by meaning: begun while the engine computes already, at its end a lesson."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from ..cache import CachedCompletion, CacheKey, Neighbour, Question
from ..cache.near import NearHits
from ..errors import PenstockError
from .metrics import Metrics
from .provenance import Provenance

if TYPE_CHECKING:
    from ..cache.trust.ruling import Ruling

# A first chunk waits this long at most for a search, of which its headers tell.
ATTRIBUTION_SECONDS = 0.05


class NearSearch:
    """Args:
    find: False only embeds the question, so that it can be found later.
    """

    def __init__(self, hits: NearHits, question: Question, *, find: bool) -> None:
        self._hits = hits
        self._task = asyncio.create_task(hits.search(question, find=find))
        self._ruling: Ruling | None = None

    async def trusted(self) -> Neighbour | None:
        """The neighbour whose completion may be served as it is."""
        near = await self._task
        self._ruling = await self._hits.rule(near)
        return near.neighbour if self._ruling is not None and self._ruling.trusted else None

    def draft(self) -> "asyncio.Task[list[int] | None]":
        """The tokens that the model is likely to give again, once they are found."""
        return asyncio.create_task(self._draft())

    async def _draft(self) -> list[int] | None:
        # Shielded: who waits for the draft may leave, and the question is still to be stored.
        neighbour = (await asyncio.shield(self._task)).neighbour
        return None if neighbour is None else neighbour.completion.choices[0].token_ids

    async def attribute(self, provenance: Provenance) -> None:
        """Tell of the draft, if the search has ended in time."""
        await asyncio.wait({self._task}, timeout=ATTRIBUTION_SECONDS)
        if self._task.done() and (neighbour := self._task.result().neighbour) is not None:
            provenance.becomes_draft(neighbour)

    async def settle(
        self, key: CacheKey | None, completion: CachedCompletion, ttl: float | None, metrics: Metrics
    ) -> None:
        """Keep what the model answered, unless `key` is None, and learn from it."""
        near = await self._task
        with suppress(PenstockError):  # the cache was closed meanwhile
            if key is not None:
                self._hits.store(key, near, completion, ttl=ttl)
            learnt = await self._hits.learn(near, self._ruling, completion)
            if learnt is not None:
                metrics.verified(*learnt)
