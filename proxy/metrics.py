"""What Prometheus is told: counters and histograms of this server, and the engine's own figures at the time
of asking.

With several workers each writes its counters to files of one folder, and whichever is asked adds them all up.
No series is named after a tenant: tenants come and go by the thousand, and every one would multiply every series; what each
of them does is in the access log.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ..cache import CompletionCache
from .backend import Backend
from .observe.collectors import CacheCollector, EngineCollector
from .observe.record import RequestRecord
from .observe.series import BoundedNames, Figures
from .observe.upstream_metrics import UpstreamFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The times at which each series began double the page, and nobody reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's own

# So much later at most the other workers are shown what one has counted.
SHOWN_SECONDS = 0.05
# Upstreams may have reasons of their own.
MAX_REASONS = 16

# vLLM's buckets, begun lower: a cache hit takes a fraction of a millisecond.
_FIRST_TOKEN = (
    0.0005,
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    60,
)
_INTER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_WHOLE = (0.0005, 0.001, 0.005, 0.025, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 300)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)


class Metrics:
    """All figures of one process. A sink of records.

    Args:
        backends: whose engines are asked.
        cache: whose size is asked; None when caching is off.
        shared: folder of the workers' files; None when this process is the only one.
    """

    def __init__(
        self, backends: Iterable[Backend], cache: CompletionCache | None, *, shared: Path | None = None
    ) -> None:
        own = CollectorRegistry()
        figures = self._figures = Figures(own)
        self._http_requests = figures.counter(
            "penstock_http_requests",
            "HTTP requests by route and status; 499 where the client left.",
            *("route", "status"),
        )
        self._cache_requests = figures.counter(
            "penstock_cache_requests", "Generations by what the cache did.", "outcome"
        )
        self._near_hits = figures.counter(
            "penstock_cache_near_hits",
            "Near hits that the model verified, by what the trusted rung said of them, and whether its answer was the "
            "same.",
            *("reason", "same"),
        )
        self._cache_shadows = figures.counter(
            "penstock_cache_shadow_calls",
            "Calls of upstreams in the background, for nobody's account, that check answers served as trusted: answered, "
            "failed.",
            "outcome",
        )
        self._cache_shadow_cost = figures.counter(
            "penstock_cache_shadow_cost",
            "Money for these calls where it is known, which is in penstock_upstream_cost too.",
        )[()]
        self._saved = figures.counter(
            "penstock_cache_saved_seconds", "Seconds of the engine that hits were spared.", "outcome"
        )
        self._routed = figures.counter(
            "penstock_routed",
            "Requests by who answers, and why it was asked first.",
            *("target", "reason"),
        )
        self._fallbacks = figures.counter(
            "penstock_fallbacks", "Targets that could not answer, so that the next was asked.", "target"
        )
        self._judged = figures.counter(
            "penstock_cascade",
            "Requests of learned routes by what became of them: kept, escalated (as the judge said of the small tier's "
            "answer), small, large (as it picked), cached, failed, unjudged, token_ids, drifted.",
            *("route", "decision"),
        )
        self._shadows = figures.counter(
            "penstock_shadow",
            "Kept answers that were compared with the large tier's, and routes that were found not to keep their promise.",
            *("route", "outcome"),
        )
        self._shadow_tokens = figures.counter(
            "penstock_shadow_tokens", "Tokens that comparing took of the large tier.", "route"
        )
        self._finished = figures.counter(
            "penstock_request_success", "Finished choices by reason.", "finished_reason"
        )
        self._aborted = figures.counter(
            "penstock_request_aborted", "Generations that ended early: client gone, or an error."
        )[()]
        self._model_requests = figures.counter(
            "penstock_model_requests", "Requests by the model that answered, as it is served.", "model"
        )
        self._model_tokens = figures.counter(
            "penstock_model_tokens",
            "Tokens that answers report, from caches too: prompt, cached (of these, not computed), completion.",
            *("model", "kind"),
        )
        self._first_token = figures.histogram(
            "penstock_time_to_first_token_seconds",
            "From a request's first byte to the first chunk of its answer.",
            "cache",
            buckets=_FIRST_TOKEN,
        )
        self._queue = figures.histogram(
            "penstock_request_queue_time_seconds",
            "From a sequence's arrival in the engine to its first step.",
            buckets=_WHOLE,
        )[()]
        # Called with every piece of a stream, so without a method of our own around it.
        self.between_tokens = figures.histogram(
            "penstock_inter_token_latency_seconds",
            "Between the chunks of a generation.",
            buckets=_INTER_TOKEN,
        )[()].observe
        self._whole = figures.histogram(
            "penstock_e2e_request_latency_seconds",
            "From a request's first byte to the last byte of its answer.",
            "cache",
            buckets=_WHOLE,
        )
        self._overhead = figures.histogram(
            "penstock_overhead_seconds",
            "Spent by this proxy itself on an answer: before it was handed over to engine, upstream or cache, and after "
            "its first token; without waiting for the client.",
            "part",
            buckets=_OVERHEAD,
        )
        self._reasons = BoundedNames(MAX_REASONS)
        self.upstream = UpstreamFamily(figures, own).upstream
        self._asked, self._is_shared = own, shared is not None
        self._flushing: asyncio.TimerHandle | None = None
        if shared is not None:
            self._asked = CollectorRegistry()
            MultiProcessCollector(self._asked, path=str(shared))  # type: ignore[no-untyped-call]  # the library's own
        self._asked.register(EngineCollector(backends))
        if cache is not None:
            self._asked.register(CacheCollector(cache))

    def first_token(self, outcome: str, seconds: float) -> None:
        self._first_token[(outcome,)].observe(seconds)

    def queued(self, seconds: float) -> None:
        self._queue.observe(seconds)

    def verified(self, reason: str, same: bool) -> None:
        """The model's own answer to a question with a near hit is known."""
        self._near_hits[reason, "yes" if same else "no"].inc()
        self._show_soon()

    def cache_shadow(self, *, answered: bool, cost: float | None = None) -> None:
        """A call that checks a trusted answer has ended."""
        self._cache_shadows[("answered" if answered else "failed",)].inc()
        if cost is not None:
            self._cache_shadow_cost.inc(cost)
        self._show_soon()

    def routed(self, target: str, reason: str) -> None:
        """A target has begun to answer."""
        self._routed[target, reason].inc()
        self._show_soon()

    def fallback(self, target: str) -> None:
        """A target could not answer, and the next is asked."""
        self._fallbacks[(target,)].inc()

    def judged(self, route: str, decision: str) -> None:
        """A learned route has begun to answer."""
        self._judged[route, decision].inc()

    def shadowed(self, route: str, *, same: bool, tokens: int, broken: bool) -> None:
        """A kept answer was compared with the large tier's; `broken`: the route is found not to keep its promise by it."""
        self._shadows[route, "same" if same else "different"].inc()
        self._shadow_tokens[(route,)].inc(tokens)
        if broken:
            self._shadows[route, "broken"].inc()
        self._show_soon()

    def ended(self, record: RequestRecord) -> None:
        self._show_soon()
        self._http_requests[record.route, str(record.status)].inc()
        if record.model_series is not None:
            self._count_model(record, record.model_series)
        if record.outcome is None:
            return
        self._cache_requests[(record.outcome,)].inc()
        if record.saved_seconds is not None:
            self._saved[(record.outcome,)].inc(record.saved_seconds)
        if record.cut:
            self._aborted.inc()
        before, after = record.overhead_before, record.overhead_after
        if before is not None and record.first_token is not None:
            self._overhead[("before",)].observe(before)
        if record.completed:
            for reason in record.finish_reasons:
                self._finished[(self._reasons[reason],)].inc()
            self._whole[(record.outcome,)].observe(record.duration)
            if after is not None:
                self._overhead[("after",)].observe(after)

    def exposition(self) -> bytes:
        self._figures.flush()
        return generate_latest(self._asked)

    def families(self) -> Iterable[Metric]:
        """The same, for who looks from within."""
        self._figures.flush()
        return self._asked.collect()

    def close(self) -> None:
        """What other workers have not been shown yet, they are shown now."""
        if self._flushing is not None:
            self._flushing.cancel()
        if self._is_shared:
            self._flush()

    def _show_soon(self) -> None:
        if self._is_shared and self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(SHOWN_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        self._figures.flush()

    def _count_model(self, record: RequestRecord, model: str) -> None:
        self._model_requests[(model,)].inc()
        if record.prompt_tokens:
            self._model_tokens[model, "prompt"].inc(record.prompt_tokens)
        if record.cached_tokens:
            self._model_tokens[model, "cached"].inc(record.cached_tokens)
        if record.completion_tokens:
            self._model_tokens[model, "completion"].inc(record.completion_tokens)
