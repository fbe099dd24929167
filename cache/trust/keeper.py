"""The policies in use, one for each family of questions, kept up to date with the labels that all processes write.

Of one event loop: decisions and labels are its own, reading and refitting go to threads.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

import msgspec

from ...errors import PenstockError
from ..completion_cache import CompletionCache
from .labels import read, without
from .policy import Decision, TrustPolicy
from .ruling import Candidate, Ruling

# Of 1 MB each once they have as many labels as they keep; another one is read again in tens of milliseconds.
MAX_FAMILIES = 64
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

    async def rule(self, family: bytes, candidate: Candidate, *, may_serve: bool = True) -> Ruling:
        """Serve it or verify it. Waits for what is known of a family the first time it is asked for.

        `may_serve`: False where the model answers whatever is ruled.
        """
        if candidate.refused is not None or candidate.observation is None:
            return Ruling(candidate, None, candidate.refused or "refused")
        policy = (await self._family(family)).policy
        decision = policy.decide(candidate.observation, random.random(), may_serve=may_serve)
        return Ruling(candidate, decision, decision.reason)

    def learn(self, family: bytes, ruling: Ruling, *, same: bool) -> None:
        """What the model's own answer says about a near hit that was not served."""
        if ruling.decision is None:
            return
        lesson = _Lesson(ruling.decision, same, self._clock())
        known = self._families.get(family)
        if known is not None:  # else it was evicted meanwhile
            known.learn(lesson)
        self._cache.note_label(family, lesson.decision.label(same, lesson.at))

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


class _Lesson(msgspec.Struct, frozen=True):
    """What verification found. `at`: seconds since the epoch."""

    decision: Decision
    same: bool
    at: float


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
        self._meanwhile: list[_Lesson] = []

    def learn(self, lesson: _Lesson) -> None:
        self.policy.learn(lesson.decision, lesson.same, lesson.at)
        self._meanwhile.append(lesson)
        self.refresh()

    def refresh(self) -> None:
        """Has the policy made anew where that is due."""
        now = time.monotonic()
        due = self.policy.refit_due or now - self._refreshed >= REFRESH_SECONDS
        if due and (self._refreshing is None or self._refreshing.done()):
            self._refreshed = now
            self._refreshing = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        try:
            # A cache that was closed meanwhile has nothing to tell; another failure is met again by the next one.
            with suppress(PenstockError):
                await self._replace_policy()
        finally:
            self.is_loaded.set()

    async def _replace_policy(self) -> None:
        while True:
            self._meanwhile.clear()
            known, due = self.policy.pack(), self.policy.refit_due
            fresh, num_read = await asyncio.to_thread(self._made_anew, known, due)
            if any(lesson.decision.is_refuted(lesson.same) for lesson in self._meanwhile):
                continue  # its threshold would be too low: what it has read is read again
            self._num_read = num_read
            if fresh is not None:
                for lesson in self._meanwhile:
                    fresh.learn(lesson.decision, lesson.same, lesson.at)
                self.policy = fresh
            return

    def _made_anew(self, known: bytes, due: bool) -> tuple[TrustPolicy | None, int]:
        """In a thread: a policy that knows all labels of all processes, and how many of them the log ever had.

        None where no other process has added any and no refit is due: one's own come back through the log as well.
        """
        rows, num_read = self._cache.labels(self._name, self._num_read)
        others = without(read(rows), read(known)).tobytes()
        if not others and not due:
            return None, num_read
        policy = TrustPolicy(self.policy.max_error_rate)
        policy.fold(known + others)
        policy.refit()
        return policy, num_read
