"""Two looks at the metrics as figures of the time between them, for `penstock top` and the dashboard. Pure: knows neither
the network, nor a terminal, nor a page."""

import math
from collections.abc import Iterable, Mapping

import msgspec
from prometheus_client import Metric

_GENERATED = ("hit", "trusted", "shared")
"""Outcomes for which the model computed nothing of its own."""
_BREAKERS = {0.0: "closed", 1.0: "half open", 2.0: "open"}

Labels = tuple[tuple[str, str], ...]


class Scrape:
    """All series at one moment; `at` in seconds of a clock that only grows."""

    def __init__(self, families: Iterable[Metric], at: float) -> None:
        self.at = at
        self._values: dict[str, dict[Labels, float]] = {}
        for family in families:
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                self._values.setdefault(sample.name, {})[labels] = sample.value

    def series(self, name: str) -> Mapping[Labels, float]:
        return self._values.get(name, {})

    def total(self, name: str) -> float | None:
        """Over all labels; None where there is no such series."""
        series = self.series(name)
        return sum(series.values()) if series else None

    def most(self, name: str) -> float | None:
        """The same, the largest."""
        return max(self.series(name).values(), default=None)


class Spread(msgspec.Struct, frozen=True):
    """Seconds; None where nothing happened."""

    p50: float | None
    p99: float | None


class UpstreamFigures(msgspec.Struct, frozen=True):
    """`failed`: share of its attempts, 0..1; None without one. `cost`: since its start."""

    name: str
    attempts_per_second: float
    failed: float | None
    breaker: str
    first_token: Spread
    cost: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    seconds: between the scrapes; all rates and spreads are of this time, what has no "per second" is as it stands.
    ready: what `/health/ready` said, and `model`, if it named one.
    statuses: answers by status.
    outcomes: generations by what the cache did; `hit_share`: of those it could answer, None without any.
    saved_seconds: of the engine, since the start.
    running, waiting: in all engines; kv_usage: of the fullest.
    accepted: share of drafted tokens that were right, None without drafts.
    """

    seconds: float
    ready: str
    model: str | None
    requests_per_second: float
    errors_per_second: float
    statuses: dict[str, int]
    running: int | None
    waiting: int | None
    tokens_in_per_second: float
    tokens_out_per_second: float
    ttft: Spread
    itl: Spread
    overhead: Spread
    outcomes: dict[str, int]
    hit_share: float | None
    saved_seconds: float
    kv_usage: float | None
    accepted: float | None
    upstreams: list[UpstreamFigures]


def figures_of(before: Scrape, after: Scrape, *, ready: str, model: str | None = None) -> Figures:
    seconds = max(after.at - before.at, 1e-9)
    delta = _Delta(before, after)
    statuses = delta.by("penstock_http_requests_total", "status")
    errors = sum(count for status, count in statuses.items() if status >= "400")
    outcomes = delta.by("penstock_cache_requests_total", "outcome")
    answerable = sum(count for outcome, count in outcomes.items() if outcome != "bypass")
    upstream_in = delta.where("penstock_upstream_tokens_total", kind="prompt")
    upstream_out = delta.where("penstock_upstream_tokens_total", kind="completion")
    drafted = delta.total("penstock_draft_tokens_total")
    return Figures(
        seconds=seconds,
        ready=ready,
        model=model,
        requests_per_second=sum(statuses.values()) / seconds,
        errors_per_second=errors / seconds,
        statuses={status: round(count) for status, count in sorted(statuses.items())},
        running=_whole(after.total("penstock_num_requests_running")),
        waiting=_whole(after.total("penstock_num_requests_waiting")),
        tokens_in_per_second=(delta.total("penstock_prompt_tokens_total") + upstream_in) / seconds,
        tokens_out_per_second=(delta.total("penstock_generation_tokens_total") + upstream_out) / seconds,
        ttft=delta.spread("penstock_time_to_first_token_seconds"),
        itl=delta.spread("penstock_inter_token_latency_seconds"),
        overhead=delta.spread("penstock_overhead_seconds", part="before"),
        outcomes={outcome: round(count) for outcome, count in sorted(outcomes.items())},
        hit_share=sum(outcomes.get(name, 0.0) for name in _GENERATED) / answerable if answerable else None,
        saved_seconds=after.total("penstock_cache_saved_seconds_total") or 0.0,
        kv_usage=after.most("penstock_kv_cache_usage_perc"),
        accepted=delta.total("penstock_draft_accepted_tokens_total") / drafted if drafted else None,
        upstreams=_upstreams(delta, seconds),
    )


class _Delta:
    """What was added between two scrapes. A counter that is smaller than before was started anew."""

    def __init__(self, before: Scrape, after: Scrape) -> None:
        self.before, self.after = before, after

    def items(self, name: str) -> Iterable[tuple[dict[str, str], float]]:
        before = self.before.series(name)
        for labels, value in self.after.series(name).items():
            past = before.get(labels, 0.0)
            yield dict(labels), value if value < past else value - past

    def total(self, name: str) -> float:
        return sum(value for _, value in self.items(name))

    def where(self, name: str, **wanted: str) -> float:
        return sum(value for labels, value in self.items(name) if wanted.items() <= labels.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """Only what has grown."""
        sums: dict[str, float] = {}
        for labels, value in self.items(name):
            if value:
                sums[labels[label]] = sums.get(labels[label], 0.0) + value
        return sums

    def spread(self, histogram: str, **wanted: str) -> Spread:
        buckets: dict[float, float] = {}
        for labels, value in self.items(f"{histogram}_bucket"):
            if wanted.items() <= labels.items():
                bound = float(labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + value
        counts = sorted(buckets.items())
        return Spread(quantile(counts, 0.5), quantile(counts, 0.99))


def quantile(buckets: list[tuple[float, float]], share: float) -> float | None:
    """Of cumulative counts by upper bound, evenly spread within a bucket; the last finite bound for what lies beyond it."""
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= share * total:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (share * total - below) / (count - below)
        low, below = bound, count
    return low


def _upstreams(delta: _Delta, seconds: float) -> list[UpstreamFigures]:
    names = sorted(
        {dict(labels)["upstream"] for labels in delta.after.series("penstock_upstream_attempts_total")}
    )
    costs = {
        dict(labels)["upstream"]: cost
        for labels, cost in delta.after.series("penstock_upstream_cost_total").items()
    }
    breakers = {
        dict(labels)["upstream"]: state
        for labels, state in delta.after.series("penstock_upstream_breaker_state").items()
    }
    rows = []
    for name in names:
        attempts = delta.where("penstock_upstream_attempts_total", upstream=name)
        succeeded = delta.where("penstock_upstream_attempts_total", upstream=name, outcome="success")
        rows.append(
            UpstreamFigures(
                name=name,
                attempts_per_second=attempts / seconds,
                failed=1 - succeeded / attempts if attempts else None,
                breaker=_BREAKERS.get(breakers.get(name, 0.0), "unknown"),
                first_token=delta.spread("penstock_upstream_first_token_seconds", upstream=name),
                cost=costs.get(name, 0.0),
            )
        )
    return rows


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
