"""The policies in use, one for each family of questions, kept up to date with the labels that all processes write.

Of one event loop: decisions and labels are its own, reading and refitting go to threads.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable

from ..completion_cache import CompletionCache
from .policy import TrustPolicy
from .ruling import Candidate, Ruling

MAX_FAMILIES = 256
# What other processes have learnt is asked for this often.
REFRESH_SECONDS = 10.0


class TrustKeeper:
    """Args:
    cache: where the labels are.
    max_error_rate: share of wrong answers allowed among trusted hits.
    clock: seconds since the epoch.
    """

    def __init__(
        self,
        cache: CompletionCache,
        *,
        max_error_rate: float = 0.01,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._max_error_rate = max_error_rate
        self._clock = clock
        self._families: OrderedDict[bytes, _Family] = OrderedDict()

    async def rule(self, family: bytes, candidate: Candidate) -> Ruling:
        """Serve it, verify it, or both. Waits for what is known of a family the first time it is asked for."""
        if candidate.refused is not None or candidate.observation is None:
            return Ruling(candidate, None, candidate.refused or "refused")
        policy = (await self._family(family)).policy
        decision = policy.decide(candidate.observation, random.random())
        return Ruling(candidate, decision, decision.reason)

    def learn(self, family: bytes, ruling: Ruling, *, same: bool) -> None:
        """What the model's own answer says about a near hit that was not served."""
        known = self._families.get(family)
        if known is None or ruling.decision is None:
            return
        self._cache.note_label(family, known.learn(ruling, same, self._clock()))

    async def policy(self, family: bytes) -> TrustPolicy:
        """For whoever explains it."""
        return (await self._family(family)).policy

    async def _family(self, name: bytes) -> "_Family":
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(self._cache, name, self._max_error_rate)
            if len(self._families) > MAX_FAMILIES:
                self._families.popitem(last=False)
        else:
            self._families.move_to_end(name)
        family.refresh()
        if not family.is_loaded.is_set():
            await family.is_loaded.wait()
        return family


class _Family:
    """`policy` is replaced, never changed, by a thread: what decides meanwhile is the one before."""

    def __init__(self, cache: CompletionCache, name: bytes, max_error_rate: float) -> None:
        self.policy = TrustPolicy(max_error_rate)
        self.is_loaded = asyncio.Event()
        self._cache = cache
        self._name = name
        self._num_read = 0
        self._refreshed = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._meanwhile: list[bytes] = []
        self._failed_meanwhile = False

    def learn(self, ruling: Ruling, same: bool, at: float) -> bytes:
        assert ruling.decision is not None
        row = self.policy.learn(ruling.decision, same, at)
        self._meanwhile.append(row)
        self._failed_meanwhile |= ruling.decision.explore and not same
        self.refresh()
        return row

    def refresh(self) -> None:
        """Has the policy made anew where that is due."""
        now = time.monotonic()
        due = self.policy.refit_due or now - self._refreshed >= REFRESH_SECONDS
        if due and (self._refreshing is None or self._refreshing.done()):
            self._refreshed = now
            self._refreshing = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        try:
            while True:
                self._meanwhile.clear()
                self._failed_meanwhile = False
                fresh = await asyncio.to_thread(self._made_anew, self.policy.pack(), self.policy.refit_due)
                if fresh is None:
                    return
                if not self._failed_meanwhile:  # else its threshold would be too low
                    fresh.fold(b"".join(self._meanwhile))
                    self.policy = fresh
                    return
        finally:
            self.is_loaded.set()

    def _made_anew(self, known: bytes, due: bool) -> TrustPolicy | None:
        """In a thread: a policy that knows all labels of all processes; None where nothing is new."""
        rows, count = self._cache.labels(self._name, self._num_read)
        self._num_read = count
        if not rows and not due:
            return None
        policy = TrustPolicy(self.policy.max_error_rate)
        policy.fold(known)
        policy.fold(rows)
        policy.refit()
        return policy
