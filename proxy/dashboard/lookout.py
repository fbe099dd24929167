"""What the page is shown once a second: rates and latencies from the metrics of all workers, and what the last day saved.

Knows neither HTTP nor HTML. What there is nothing of is an empty list or None; the page leaves its place out.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from prometheus_client import Metric

from ..cascade.learned_route import LearnedRoute
from ..observe.savings import savings_view
from ..observe.top_figures import Figures, Scrape, Spread, figures_of
from ..tenants.environment import StoreError
from ..tenants.totals import Totals
from .day import Day
from .live import INTERVAL_SECONDS, Look

log = logging.getLogger(__name__)

# Percentiles are of the last so many seconds: of one alone there would be too few requests.
SPREAD_SECONDS = 20
SAVINGS_SECONDS = 5.0
# Waiting and running, of each model that is computed here.
_ENGINE = {
    "running": "penstock_num_requests_running",
    "waiting": "penstock_num_requests_waiting",
    "kv_usage": "penstock_kv_cache_usage_perc",
    "kv_blocks": "penstock_kv_cache_blocks",
    "up": "penstock_engine_up",
    "generated": "penstock_generation_tokens_total",
    "preemptions": "penstock_num_preemptions_total",
}


class Lookout:
    """Of one event loop.

    Args:
        families: reads all metrics.
        learned: the routes that have a judge, as they are now.
        totals: None where none are kept.
        shows_tenants: to their operator.
    """

    def __init__(
        self,
        families: Callable[[], Iterable[Metric]],
        learned: Callable[[], Iterable[LearnedRoute]],
        totals: Totals | None,
        *,
        shows_tenants: bool,
    ) -> None:
        self._families = families
        self._learned = learned
        self._day = None if totals is None else Day(totals)
        self._shows_tenants = shows_tenants
        self._scrapes: deque[Scrape] = deque(maxlen=1 + SPREAD_SECONDS)
        self._savings: dict[str, Any] | None = None
        self._savings_due = 0.0

    async def look(self) -> Look:
        now = time.monotonic()
        if self._scrapes and now - self._scrapes[-1].at > SPREAD_SECONDS * INTERVAL_SECONDS:
            self._scrapes.clear()  # nobody looked for a while
        if self._day is not None and now >= self._savings_due:
            self._savings_due = now + SAVINGS_SECONDS
            try:
                self._savings = await asyncio.to_thread(self._read_savings, self._day)
            except StoreError as error:  # the rest is shown all the same
                log.warning("what was saved cannot be read: %s", error)
        scrape = Scrape(self._families(), time.monotonic())
        before = self._scrapes[-1] if self._scrapes else scrape
        self._scrapes.append(scrape)
        recent = figures_of(before, scrape, ready="")
        spreads = figures_of(self._scrapes[0], scrape, ready="")
        return {
            "point": _point(recent, spreads),
            "engines": _engines(scrape),
            "drafters": _drafters(scrape),
            "cache": _cache(scrape),
            "routes": _rows(scrape, "penstock_routed_total", "target", "reason"),
            "fallbacks": _rows(scrape, "penstock_fallbacks_total", "target"),
            "decisions": _rows(scrape, "penstock_cascade_total", "route", "decision"),
            "promises": [_promise(route) for route in self._learned()],
            "comparisons": _rows(scrape, "penstock_shadow_total", "route", "outcome"),
            "upstreams": msgspec.to_builtins(spreads.upstreams),
            "savings": self._savings,
        }

    def _read_savings(self, day: Day) -> dict[str, Any]:
        view = savings_view(day.savings())
        del view["hours"]
        if not self._shows_tenants:
            del view["tenants"]
        return view


def _point(recent: Figures, spreads: Figures) -> dict[str, Any]:
    return {
        "time": round(time.time(), 3),
        "requests": recent.requests_per_second,
        "errors": recent.errors_per_second,
        "tokens_in": recent.tokens_in_per_second,
        "tokens_out": recent.tokens_out_per_second,
        **_spread("first", spreads.ttft),
        **_spread("between", spreads.itl),
        **_spread("overhead", spreads.overhead),
        "running": recent.running,
        "waiting": recent.waiting,
        "kv_usage": recent.kv_usage,
        "outcomes": recent.outcomes,
    }


def _spread(name: str, spread: Spread) -> dict[str, float | None]:
    return {f"{name}_p50": spread.p50, f"{name}_p99": spread.p99}


def _promise(route: LearnedRoute) -> dict[str, Any]:
    promise = route.promise
    return {
        "route": route.name,
        "small": route.small.name,
        "large": route.large.name,
        "quality": promise.quality,
        "needed": promise.needed,
        "broken": route.drift.broken,
    }


def _engines(scrape: Scrape) -> list[dict[str, Any]]:
    """By model; an engine whose series bear no model's name is the only one."""
    engines: dict[str, dict[str, Any]] = {}
    for field, series in _ENGINE.items():
        for labels, value in scrape.series(series).items():
            engines.setdefault(dict(labels).get("model", ""), {})[field] = value
    return [{"model": model, **fields} for model, fields in sorted(engines.items())]


def _drafters(scrape: Scrape) -> list[dict[str, Any]]:
    drafted: dict[str, list[float]] = {}
    for place, name in enumerate(("penstock_draft_tokens_total", "penstock_draft_accepted_tokens_total")):
        for labels, value in scrape.series(name).items():
            drafted.setdefault(dict(labels).get("drafter", ""), [0.0, 0.0])[place] += value
    return [
        {"drafter": name, "drafted": guessed, "accepted": accepted}
        for name, (guessed, accepted) in sorted(drafted.items())
        if guessed
    ]


def _cache(scrape: Scrape) -> dict[str, Any]:
    """Since the start."""
    verified = _rows(scrape, "penstock_cache_near_hits_total", "reason", "same")
    return {
        "outcomes": {
            row["outcome"]: row["count"] for row in _rows(scrape, "penstock_cache_requests_total", "outcome")
        },
        "entries": scrape.total("penstock_cache_entries"),
        "used_bytes": scrape.total("penstock_cache_used_bytes"),
        "max_bytes": scrape.total("penstock_cache_max_bytes"),
        "verified": sum(row["count"] for row in verified),
        "verified_same": sum(row["count"] for row in verified if row["same"] == "yes"),
    }


def _rows(scrape: Scrape, name: str, *fields: str) -> list[dict[str, Any]]:
    """Since the start, the most frequent first."""
    rows: dict[tuple[str, ...], float] = {}
    for labels, value in scrape.series(name).items():
        known = dict(labels)
        key = tuple(known.get(field, "") for field in fields)
        rows[key] = rows.get(key, 0.0) + value
    listed = sorted(rows.items(), key=lambda row: (-row[1], row[0]))
    return [{**dict(zip(fields, key, strict=True)), "count": count} for key, count in listed]
