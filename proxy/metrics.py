"""What Prometheus is told: counters and histograms of this server, and the engine's own figures at the time
of asking.

With several workers each writes its counters to files of one folder, and whichever is asked adds them all up;
the engine's figures are the same seen from any worker, so they are read live and never added.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ..cache import CompletionCache
from ..errors import PenstockError
from ..scheduler.outputs import Chunk, DrafterStats
from .backend import Backend
from .provenance import Provenance
from .transcript import Transcript

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The times at which each series began double the page, and nobody reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's own

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


class Metrics:
    """All figures of one process.

    Args:
        backend: whose engine is asked; None without one.
        cache: whose size is asked; None when caching is off.
        shared: folder of the workers' files; None when this process is the only one.
    """

    def __init__(
        self, backend: Backend | None, cache: CompletionCache | None, *, shared: Path | None = None
    ) -> None:
        own = CollectorRegistry()
        self.http_requests = Counter(
            "penstock_http_requests", "HTTP requests by route and status.", ["route", "status"], registry=own
        )
        self._cache_requests = Counter(
            "penstock_cache_requests", "Generations by what the cache did.", ["outcome"], registry=own
        )
        self._near_hits = Counter(
            "penstock_cache_near_hits",
            "Near hits that the model verified, by what the trusted rung said of them, and whether its answer was the same.",
            ["reason", "same"],
            registry=own,
        )
        self._saved = Counter(
            "penstock_cache_saved_seconds",
            "Seconds of the engine that hits were spared.",
            ["outcome"],
            registry=own,
        )
        self._routed = Counter(
            "penstock_routed",
            "Requests by who answers, and why it was asked first.",
            ["target", "reason"],
            registry=own,
        )
        self._fallbacks = Counter(
            "penstock_fallbacks",
            "Targets that could not answer, so that the next was asked.",
            ["target"],
            registry=own,
        )
        self._finished = Counter(
            "penstock_request_success", "Finished choices by reason.", ["finished_reason"], registry=own
        )
        self._aborted = Counter(
            "penstock_request_aborted",
            "Generations that ended early: client gone, or an error.",
            registry=own,
        )
        self._first_token = Histogram(
            "penstock_time_to_first_token_seconds",
            "From a request's arrival to its first chunk.",
            ["cache"],
            buckets=_FIRST_TOKEN,
            registry=own,
        )
        self._queue = Histogram(
            "penstock_request_queue_time_seconds",
            "From a sequence's arrival in the engine to its first step.",
            buckets=_WHOLE,
            registry=own,
        )
        self._inter_token = Histogram(
            "penstock_inter_token_latency_seconds",
            "Between the chunks of a generation.",
            buckets=_INTER_TOKEN,
            registry=own,
        )
        self._whole = Histogram(
            "penstock_e2e_request_latency_seconds",
            "From a request's arrival to its last chunk.",
            ["cache"],
            buckets=_WHOLE,
            registry=own,
        )
        self._asked = own
        if shared is not None:
            self._asked = CollectorRegistry()
            MultiProcessCollector(self._asked, path=str(shared))  # type: ignore[no-untyped-call]  # the library's own
        if backend is not None:
            self._asked.register(_EngineCollector(backend))
        if cache is not None:
            self._asked.register(_CacheCollector(cache))

    def observe(self, provenance: Provenance, started: float) -> "Observation":
        return Observation(self, provenance, started)

    def verified(self, reason: str, same: bool) -> None:
        """The model's own answer to a question with a near hit is known."""
        self._near_hits.labels(reason, "yes" if same else "no").inc()

    def routed(self, target: str, reason: str) -> None:
        """A target has begun to answer."""
        self._routed.labels(target, reason).inc()

    def fallback(self, target: str) -> None:
        """A target could not answer, and the next is asked."""
        self._fallbacks.labels(target).inc()

    def exposition(self) -> bytes:
        return generate_latest(self._asked)


class Observation:
    """The times of one generation, whose provenance is final with its first batch. Leaving it without `finished` counts
    as aborted."""

    def __init__(self, metrics: Metrics, provenance: Provenance, started: float) -> None:
        self._metrics = metrics
        self._provenance = provenance
        self._started = started
        self._last: float | None = None
        self._finished = False

    def batch(self, chunks: list[Chunk]) -> None:
        now = time.perf_counter()
        for chunk in chunks:
            if chunk.queue_seconds is not None:
                self._metrics._queue.observe(chunk.queue_seconds)
        if self._last is None:
            self._metrics._first_token.labels(self._provenance.outcome).observe(now - self._started)
        else:
            self._metrics._inter_token.observe(now - self._last)
        self._last = now

    def finished(self, transcript: Transcript) -> None:
        self._finished = True
        for choice in transcript.choices:
            self._metrics._finished.labels(choice.finish_reason).inc()
        self._metrics._whole.labels(self._provenance.outcome).observe(time.perf_counter() - self._started)

    def __enter__(self) -> "Observation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics._cache_requests.labels(self._provenance.outcome).inc()
        if self._provenance.saved is not None:
            self._metrics._saved.labels(self._provenance.outcome).inc(self._provenance.saved)
        refused = isinstance(error, PenstockError) and self._last is None
        if not self._finished and not refused:
            self._metrics._aborted.inc()


_DRAFTER_COUNTERS: tuple[tuple[str, Callable[[DrafterStats], int], str], ...] = (
    (
        "draft_verifications",
        lambda figures: figures.verifications,
        "Steps of sequences that verified a draft.",
    ),
    ("draft_tokens", lambda figures: figures.drafted, "Tokens guessed and verified ..."),
    ("draft_accepted_tokens", lambda figures: figures.accepted, "... of which so many were right."),
)


class _EngineCollector(Collector):
    """The engine's latest snapshot, read when Prometheus asks."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterable[Metric]:
        ready = self._backend.is_ready
        yield _gauge("engine_up", "1 while the engine answers.", float(ready))
        if not ready:
            return
        stats = self._backend.engine.stats
        yield _gauge("num_requests_running", "Sequences being computed.", stats.num_running)
        yield _gauge("num_requests_waiting", "Sequences waiting for room.", stats.num_waiting)
        yield _gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0..1.", stats.kv_usage)
        yield _gauge("kv_cache_blocks", "KV blocks there are.", stats.kv_blocks_total)
        yield _counter("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_queries)
        yield _counter("prefix_cache_hits", "Prompt tokens found.", stats.prefix_hits)
        yield _counter("num_preemptions", "Sequences put back to wait.", stats.preemptions)
        yield _counter("engine_steps", "Batches computed.", stats.steps)
        yield _counter("prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens)
        yield _counter("generation_tokens", "Tokens generated.", stats.generation_tokens)
        for name, value_of, text in _DRAFTER_COUNTERS:
            family = CounterMetricFamily(f"penstock_{name}", text, labels=["drafter"])
            for drafter, figures in stats.drafters.items():
                family.add_metric([drafter], value_of(figures))
            yield family
        sparse = stats.sparse
        yield _counter("sparse_rows", "Rows and layers decided by sparse attention.", sparse.rows)
        yield _counter("sparse_fallbacks", "Of these, computed densely after all.", sparse.fallbacks)
        yield _counter("sparse_kept_tokens", "Tokens they attended to ...", sparse.kept_tokens)
        yield _counter("sparse_context_tokens", "... of so many.", sparse.context_tokens)
        yield _counter("sparse_estimated_mass", "Attention kept by estimate, summed.", sparse.estimated_mass)
        yield _counter("sparse_sampled_rows", "Rows whose kept attention was computed.", sparse.sampled_rows)
        yield _counter("sparse_sampled_mass", "That attention, summed.", sparse.sampled_mass)
        yield _counter("sparse_bounded_rows", "Rows with a proof of what is dropped.", sparse.bounded_rows)
        yield _counter(
            "sparse_dropped_bound", "The most that is dropped there, summed.", sparse.dropped_bound
        )
        yield _counter("sparse_prompt_blocks", "Blocks of 64 queries decided.", sparse.prompt_blocks)
        yield _counter("sparse_prompt_kept_tokens", "Tokens they attended to ...", sparse.prompt_kept_tokens)
        yield _counter("sparse_prompt_context_tokens", "... of so many.", sparse.prompt_context_tokens)
        yield _counter(
            "sparse_prompt_estimated_mass",
            "Least attention of their rows kept, summed.",
            sparse.prompt_estimated_mass,
        )


class _CacheCollector(Collector):
    """The cache's file, which all workers share."""

    def __init__(self, cache: CompletionCache) -> None:
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        stats = self._cache.stats()
        yield _gauge("cache_up", "1 while completions are read and written.", float(stats.state == "on"))
        yield _gauge("cache_entries", "Completions kept.", stats.entries)
        yield _gauge("cache_used_bytes", "Bytes they take.", stats.used_bytes)
        yield _gauge("cache_max_bytes", "Bytes they may take.", stats.max_bytes)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"penstock_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"penstock_{name}", text, value=value)
