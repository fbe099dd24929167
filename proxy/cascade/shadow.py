"""One request that was drawn to be looked at: the large tier is asked too, when it has nothing else to do, and nobody waits.

A kept answer that says something else than the large tier's counts as a loss, whichever of the two is right: the large one
is what was promised. It is nobody's request: it is in no tenant's account, and waits behind all others in the engine.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from ...cache.trust.same_answer import same_answer
from ...errors import PenstockError
from ..routing.target import LocalTarget, Target
from ..unseen import unseen
from .answer_text import answer_text
from .drift import Drift
from .explanation import Decision

if TYPE_CHECKING:
    from ..answering import Asked, Started
    from .learned_route import LearnedRoute

log = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
POLL_SECONDS = 0.05
# Those that wait hold a request each.
MAX_PENDING = 32
# Where the request names no limit.
_USUAL_TOKENS = 512
_BYTES_PER_TOKEN = 4
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

Ask = Callable[["Asked", Target], Awaitable["Started"]]


class Shadow:
    def __init__(self, asked: "Asked", route: "LearnedRoute", ask: Ask) -> None:
        self._asked, self._route, self._ask = asked, route, ask

    @classmethod
    def drawn(cls, asked: "Asked", route: "LearnedRoute", ask: Ask) -> "Shadow | None":
        """None for what is not looked at; sampled answers differ by themselves."""
        if asked.fields.get("temperature") != 0 or len(route.drift.pending) >= MAX_PENDING:
            return None
        return cls(asked, route, ask) if route.drift.wants() else None

    def over(self, started: "Started", decision: Decision) -> "Started":
        """The same answer, after which it is looked at."""
        return _Watched(started, self, decision)

    def look(self, decision: Decision, said: str | None) -> None:
        """`said`: by the small tier; None where it did not come whole, or the large one was asked."""
        if decision in ("kept", "small") and said is None:
            return
        drift = self._route.drift
        task = asyncio.create_task(self._look(drift, said if decision in ("kept", "small") else None))
        drift.pending.add(task)
        task.add_done_callback(drift.pending.discard)

    async def _look(self, drift: Drift, said: str | None) -> None:
        # All draws wait so, and are given up so, whatever became of them: what is counted is like what is not.
        if not await self._large_is_idle() or (reserved := drift.reserve(self._most_tokens)) is None:
            return
        spent: int | None = 0
        try:
            if said is None:
                drift.saw(loss=False)
                return
            answer, spent = await self._answer_of_large()
        except PenstockError as error:
            log.info(
                "%s: the large tier is not compared with: %s", self._asked.caller.request_id, error.logged
            )
            return
        finally:
            drift.settle(reserved, reserved if spent is None else spent)
        same = same_answer(said, answer, "agreement").same
        was_broken = drift.broken
        drift.saw(loss=not same)
        self._asked.context.metrics.shadowed(
            self._route.name, same=same, tokens=spent or 0, broken=drift.broken and not was_broken
        )

    @property
    def _most_tokens(self) -> int:
        """That asking the large tier may take, by estimate."""
        fields = self._asked.fields
        limits = [limit for name in _LIMITS if isinstance(limit := fields.get(name), int)]
        return len(self._asked.body) // _BYTES_PER_TOKEN + max(limits, default=_USUAL_TOKENS)

    async def _large_is_idle(self) -> bool:
        """Waits for that."""
        target = self._route.large
        if not isinstance(target, LocalTarget):
            return True
        backend = self._asked.context.backends.of(target.served)
        deadline = time.monotonic() + IDLE_SECONDS
        while time.monotonic() < deadline:
            stats = backend.engine.stats
            if backend.is_ready and not (stats.num_running or stats.num_waiting):
                return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _answer_of_large(self) -> tuple[str, int | None]:
        """What it says, and the tokens that took, None where it does not tell them. Raises PenstockError."""
        again = unseen(self._asked)
        started = await self._ask(again, self._route.large)
        body = await started.whole()
        prompt, completion = again.record.prompt_tokens, again.record.completion_tokens
        return answer_text(body), None if prompt is None or completion is None else prompt + completion


class _Watched:
    """A `Started` (answering.py)."""

    def __init__(self, started: "Started", shadow: Shadow, decision: Decision) -> None:
        self._started, self._shadow, self._decision = started, shadow, decision

    async def send(self) -> web.StreamResponse:
        response = await self._started.send()
        self._shadow.look(self._decision, self._started.said)
        return response

    async def whole(self) -> bytes:
        return await self._started.whole()

    @property
    def said(self) -> str | None:
        return self._started.said
