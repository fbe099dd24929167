"""The engine's and the cache's own figures, read at the time of asking: the same seen from any worker, so never added."""

from collections.abc import Callable, Iterable
from functools import partial

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
    """The engines' latest snapshots, read when Prometheus asks: of each a series, by its model's name."""

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._backends = list(backends)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for backend in self._backends:
            for metric in _of_engine(backend):
                family = families.setdefault(metric.name, metric)
                if family is not metric:
                    family.samples += metric.samples
        return families.values()


def _of_engine(backend: Backend) -> Iterable[Metric]:
    gauge, counter = partial(_gauge, model=backend.name), partial(_counter, model=backend.name)
    ready = backend.is_ready
    yield gauge("engine_up", "1 while the engine answers.", float(ready))
    if not ready:
        return
    stats = backend.engine.stats
    yield gauge("num_requests_running", "Sequences being computed.", stats.num_running)
    yield gauge("num_requests_waiting", "Sequences waiting for room.", stats.num_waiting)
    yield gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0..1.", stats.kv_usage)
    yield gauge("kv_cache_blocks", "KV blocks there are.", stats.kv_blocks_total)
    yield counter("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_queries)
    yield counter("prefix_cache_hits", "Prompt tokens found.", stats.prefix_hits)
    yield counter("num_preemptions", "Sequences put back to wait.", stats.preemptions)
    yield counter("engine_steps", "Batches computed.", stats.steps)
    yield counter("prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens)
    yield counter("generation_tokens", "Tokens generated.", stats.generation_tokens)
    for name, value_of, text in _DRAFTER_COUNTERS:
        family = CounterMetricFamily(f"penstock_{name}", text, labels=["model", "drafter"])
        for drafter, figures in stats.drafters.items():
            family.add_metric([backend.name, drafter], value_of(figures))
        yield family
    sparse = stats.sparse
    yield counter("sparse_rows", "Rows and layers decided by sparse attention.", sparse.rows)
    yield counter("sparse_fallbacks", "Of these, computed densely after all.", sparse.fallbacks)
    yield counter("sparse_kept_tokens", "Tokens they attended to ...", sparse.kept_tokens)
    yield counter("sparse_context_tokens", "... of so many.", sparse.context_tokens)
    yield counter("sparse_estimated_mass", "Attention kept by estimate, summed.", sparse.estimated_mass)
    yield counter("sparse_sampled_rows", "Rows whose kept attention was computed.", sparse.sampled_rows)
    yield counter("sparse_sampled_mass", "That attention, summed.", sparse.sampled_mass)
    yield counter("sparse_bounded_rows", "Rows with a proof of what is dropped.", sparse.bounded_rows)
    yield counter("sparse_dropped_bound", "The most that is dropped there, summed.", sparse.dropped_bound)
    yield counter("sparse_prompt_blocks", "Blocks of 64 queries decided.", sparse.prompt_blocks)
    yield counter("sparse_prompt_kept_tokens", "Tokens they attended to ...", sparse.prompt_kept_tokens)
    yield counter("sparse_prompt_context_tokens", "... of so many.", sparse.prompt_context_tokens)
    yield counter(
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


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    family = GaugeMetricFamily(f"penstock_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(name: str, text: str, value: float, **labels: str) -> Metric:
    family = CounterMetricFamily(f"penstock_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
