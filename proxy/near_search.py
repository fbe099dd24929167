"""One job's search for a completion by meaning: begun while the engine computes already, at its end a lesson."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from ..cache import CachedCompletion, CacheKey, Neighbour, Question, WholePrompt
from ..cache.near import MODES, Mode, NearHits
from ..errors import PenstockError
from .metrics import Metrics
from .provenance import Provenance
from .tenants.rights import permitted_mode
from .tenants.tenant import Tenant

if TYPE_CHECKING:
    from ..cache.trust.ruling import Ruling

# A first chunk waits this long at most for a search, of which its headers tell, and a request that may be answered without
# the model so long for the answer.
ATTRIBUTION_SECONDS = 0.05
TRUSTED_SECONDS = 0.25


class NearSearch:
    """Args:
    find: False only embeds the question, so that it can be found later.
    drafts: whether the engine is given what is found.
    exact: only an answer that is the same to the letter counts as the same one.
    """

    def __init__(self, hits: NearHits, question: Question, *, find: bool, drafts: bool, exact: bool) -> None:
        self._hits = hits
        self._find = find
        self._drafts = drafts and find
        self._exact = exact
        self._task = asyncio.create_task(hits.search(question, find=find))
        self._ruling: Ruling | None = None

    async def trusted(self) -> Neighbour | None:
        """The neighbour whose completion may be served as it is; None, too, where it is not found in time."""
        if not self._find:
            return None
        await asyncio.wait({self._task}, timeout=TRUSTED_SECONDS)
        if not self._task.done():
            return None
        near = self._task.result()
        self._ruling = await self._hits.rule(near)
        return near.neighbour if self._ruling is not None and self._ruling.trusted else None

    @property
    def drawn(self) -> Neighbour | None:
        """After `trusted`: the neighbour whose completion might be served, were it not drawn to be verified."""
        ruling = self._ruling
        if ruling is None or ruling.decision is None or not ruling.decision.explore:
            return None
        return ruling.candidate.neighbour

    def draft(self) -> "asyncio.Task[list[int] | None] | None":
        """The tokens that the model is likely to give again, once they are found."""
        return asyncio.create_task(self._draft()) if self._drafts else None

    async def _draft(self) -> list[int] | None:
        # Shielded: who waits for the draft may leave, and the question is still to be stored.
        neighbour = (await asyncio.shield(self._task)).neighbour
        return None if neighbour is None else neighbour.completion.choices[0].token_ids

    async def attribute(self, provenance: Provenance) -> None:
        """Tell of the draft, if the search has ended in time."""
        if not self._drafts:
            return
        await asyncio.wait({self._task}, timeout=ATTRIBUTION_SECONDS)
        if self._task.done() and (neighbour := self._task.result().neighbour) is not None:
            provenance.becomes_draft(neighbour)

    async def settle(
        self,
        key: CacheKey | None,
        completion: CachedCompletion | None,
        ttl: float | None,
        metrics: Metrics,
        prompt: WholePrompt | None,
    ) -> None:
        """Keep what the model answered, unless `key` is None, and learn from it. `completion` None: it did not end by
        itself, as every kept one did. `prompt`: to be kept beside it."""
        near = await self._task
        with suppress(PenstockError):  # the cache was closed meanwhile
            if key is not None and completion is not None:
                self._hits.store(key, near, completion, ttl=ttl, prompt=prompt)
            learnt = await self._hits.learn(near, self._ruling, completion, exact=self._exact)
            if learnt is not None:
                metrics.verified(*learnt)


def mode_of(near: NearHits | None, asked: Mode | None, tenant: Tenant, *, logprobs: bool) -> Mode:
    """What is made of a find: what the server allows, or less where the request asks for less or its tenant has less.

    `logprobs`: the request asks for log-probabilities. Those of an answer are those of its very question.
    """
    if near is None:
        return "off"
    asked = asked or near.mode
    if asked == "trusted" and logprobs:
        asked = "draft"
    return permitted_mode(tenant, min(near.mode, asked, key=MODES.index))
