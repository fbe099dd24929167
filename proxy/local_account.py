"""What generations of the local engine take, for the accounts of their tenants."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from ..scheduler.outputs import Chunk
from .backend import Backend
from .provenance import REUSED
from .tenants.spend import Prices, Saving, Spend, cost

if TYPE_CHECKING:
    from ..config import Settings
    from .flight import Source
    from .service import Head, Job

Batches = AsyncGenerator[list[Chunk], None]

# How much of the mean seconds a token one more generation makes.
_NEWS = 0.05


def hour_price(settings: "Settings", name: str) -> float:
    """What an hour of an engine costs: of the tier called `name`, or of the main model."""
    tier = settings.tiers.get(name)
    return settings.local_hour_price if tier is None or tier.hour_price is None else tier.hour_price


class LocalAccount:
    """`hour_price`: of the engine. What several compute together is shared among them evenly."""

    def __init__(self, backend: Backend, hour_price: float) -> None:
        self._backend = backend
        self._seconds_per_token = 0.0
        self.set_price(hour_price)

    def set_price(self, hour_price: float) -> None:
        self._prices = Prices(per_engine_second=hour_price / 3600)

    def expected_seconds(self, tokens: int) -> float:
        """By what tokens have taken so far; 0 before the first generation has shown that."""
        return tokens * self._seconds_per_token

    def expected_cost(self, tokens: int) -> float:
        """What `expected_seconds` cost."""
        return cost(self._prices, engine_seconds=self.expected_seconds(tokens)) or 0.0

    def known_cost(self, tokens: int) -> float | None:
        """The same, None where no generation has shown yet what tokens take; what costs nothing is known to."""
        return cost(self._prices, engine_seconds=self.expected_seconds(tokens) or None)

    async def counted(self, job: "Job", head: "Head", batches: "Source[list[Chunk]]") -> Batches:
        """Passes batches on; with their end, however they end, what they took is settled."""
        model = self._backend.served_as(job.params.adapter)
        meter = _Meter(self._backend, job.params.n)
        with job.admission.call(model) as call:
            try:
                async with aclosing(batches):
                    async for batch in batches:
                        meter.add(batch)
                        yield batch
            except Exception:
                if not meter.has_begun:
                    call.refused()
                raise
            finally:
                call.settle(self._spend(model, head, meter))

    def _spend(self, model: str, head: "Head", meter: "_Meter") -> Spend:
        reused = head.provenance.outcome in REUSED
        spend = Spend(
            model=model,
            prompt_tokens=head.prompt_tokens,
            cached_tokens=meter.cached_tokens,
            completion_tokens=meter.completion_tokens,
            reused=reused,
        )
        tokens = head.prompt_tokens + meter.completion_tokens
        if reused:
            saving = Saving("cache", self.known_cost(tokens), head.provenance.saved)
            return msgspec.structs.replace(spend, cost=0.0, engine_seconds=0.0, savings=(saving,))
        # A client that left before the first token leaves nobody to say how long its prompt was computed.
        seconds = meter.seconds if meter.has_begun else None
        if seconds is not None and tokens:
            share = _NEWS if self._seconds_per_token else 1.0
            self._seconds_per_token += share * (seconds / tokens - self._seconds_per_token)
        money = cost(self._prices, engine_seconds=seconds)
        return msgspec.structs.replace(spend, cost=money, engine_seconds=seconds)


class _Meter:
    """Tokens as they come, and the share of the engine's time that they took.

    Between two batches of a generation the time is divided among all sequences that run; what it waited in the queue
    is nobody's.
    """

    def __init__(self, backend: Backend, n: int) -> None:
        self.completion_tokens = 0
        self.seconds = 0.0
        self.has_begun = False
        self._backend = backend
        self._n = n
        self._cached: dict[int, int] = {}
        self._last = time.perf_counter()

    @property
    def cached_tokens(self) -> int:
        return sum(self._cached.values())

    def add(self, batch: list[Chunk]) -> None:
        now = time.perf_counter()
        spent, self._last, self.has_begun = now - self._last, now, True
        queued = 0.0
        for chunk in batch:
            self.completion_tokens += len(chunk.token_ids)
            queued = max(queued, chunk.queue_seconds or 0.0)
            if chunk.num_cached_tokens:
                prompt = chunk.index // self._n
                self._cached[prompt] = max(self._cached.get(prompt, 0), chunk.num_cached_tokens)
        own = len({chunk.index for chunk in batch})
        running = max(own, self._backend.engine.stats.num_running)
        self.seconds += max(0.0, spent - queued) * own / running
