"""The engine's and the cache's own figures, read at the time of asking: the same seen from any worker, so never added."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...cache import CompletionCache
from ...scheduler.outputs import DrafterStats
from ..backend import Backend

_DRAFTER_COUNTERS: tuple[tuple[str, Callable[[DrafterStats], int], str], ...] = (
    (
        "draft_verifications",
        lambda figures: figures.verifications,
        "Steps of sequences that verified a draft.",
    ),
    ("draft_tokens", lambda figures: figures.drafted, "Tokens guessed and verified ..."),
    ("draft_accepted_tokens", lambda figures: figures.accepted, "... of which so many were right."),
)


class EngineCollector(Collector):
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


class CacheCollector(Collector):
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
