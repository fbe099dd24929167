"""What each lever saved, against a baseline of the large tier without a cache. Pure: rows in, figures out. What is estimated
says so; what nobody knows is None.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from ..provenance import REUSED
from ..tenants.totals import HOUR, Row, Saved, Total
from ..tenants.window import moment

ASSUMPTIONS = (
    "The baseline is the large tier without a cache: every answer computed anew, by the dearest model of its route, in the "
    "same tokens.",
    "An answer that was kept or shared would have cost what its tokens cost at the prices of the model that wrote it; of a "
    "model served here, what its tokens have cost so far, by its seconds and local_hour_price.",
    "The time that an answer from the cache saved is what computing it took when it was stored; what a shared answer saved "
    "is not known, as its readers wait for the same one.",
    "The time that drafts saved is an estimate (≈): their tokens at the seconds a token of the same model's misses, less "
    "what they took; of answers that no other model was asked for before. They are the model's own, and save no tokens.",
    "Prompt tokens whose KV was there were not computed again; no money is claimed for them.",
    "Asking another model saved what the dearest of its route would have cost besides; where one of these has no price, "
    "nobody knows that.",
    "Requests whose cost nobody knows are in no sum of money, on neither side.",
)


class Lever(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    requests: it helped; None where that is not counted by requests.
    tokens: that were not computed.
    cost: money; None: not known, or none is claimed.
    seconds: of waiting; `is_estimate`: they are one.
    unknown: further requests, of which nobody knows the money.
    """

    name: str
    requests: int | None
    tokens: int
    cost: float | None
    seconds: float | None
    is_estimate: bool = False
    unknown: int = 0


class Part(msgspec.Struct, frozen=True):
    """The sums of one tenant, model, hour or outcome."""

    name: str
    total: Total


class Savings(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    since, until: seconds since the epoch; the first is the begin of an hour.
    total: of everything.
    baseline_cost, baseline_seconds: what it would have been without any lever.
    hours: since the epoch, as their names. reused_tokens: of each, those of answers that nothing was computed for.
    """

    since: int
    until: int
    total: Total
    baseline_cost: float
    baseline_seconds: float
    levers: list[Lever]
    outcomes: list[Part]
    models: list[Part]
    tenants: list[Part]
    hours: list[Part]
    reused_tokens: dict[str, int]

    @property
    def saved_cost(self) -> float:
        return self.baseline_cost - self.total.cost

    @property
    def saved_seconds(self) -> float:
        return self.baseline_seconds - self.total.waited_seconds

    @property
    def saved_share(self) -> float | None:
        """Of the baseline's money, 0..1; None when that is nothing."""
        return self.saved_cost / self.baseline_cost if self.baseline_cost > 0 else None


def savings_view(savings: Savings) -> dict[str, Any]:
    """As plain values, for JSON; nested sums are named, moments are in UTC."""
    hours = [
        {
            "hour": moment(int(part.name) * HOUR),
            "reused_tokens": savings.reused_tokens.get(part.name, 0),
            **_view(part.total),
        }
        for part in savings.hours
    ]
    parts = {"outcomes": savings.outcomes, "models": savings.models, "tenants": savings.tenants}
    return {
        "since": moment(savings.since),
        "until": moment(savings.until),
        "total": _view(savings.total),
        "baseline": {"cost": savings.baseline_cost, "seconds": savings.baseline_seconds},
        "saved": {
            "cost": savings.saved_cost,
            "seconds": savings.saved_seconds,
            "share": savings.saved_share,
        },
        "levers": msgspec.to_builtins(savings.levers),
        **{
            name: [{"name": part.name, **_view(part.total)} for part in listed]
            for name, listed in parts.items()
        },
        "hours": hours,
        "assumptions": ASSUMPTIONS,
    }


def _view(total: Total) -> dict[str, Any]:
    sums = {name: getattr(total, name) for name in Total.__struct_fields__ if name != "saved"}
    return {**sums, "saved_cost": {by: _cost(saved) for by, saved in total.saved.items()}}


def savings_of(rows: Sequence[Row], *, since: int, until: int) -> Savings:
    total = _sum(rows)
    levers = [
        _reuse(rows, "hit", "exact hits"),
        _reuse(rows, "trusted", "trusted hits"),
        _reuse(rows, "shared", "shared answers"),
        _drafts(rows),
        _prefix(rows),
        *_money(total),
    ]
    return Savings(
        since=since,
        until=until,
        total=total,
        baseline_cost=total.cost + sum(lever.cost or 0.0 for lever in levers),
        baseline_seconds=total.waited_seconds + sum(lever.seconds or 0.0 for lever in levers),
        levers=levers,
        outcomes=_parts(rows, lambda row: row.place.outcome),
        models=_parts(rows, lambda row: row.place.model),
        tenants=_parts(rows, lambda row: row.place.tenant),
        reused_tokens={
            part.name: part.total.prompt_tokens + part.total.completion_tokens
            for part in _parts((row for row in rows if row.place.outcome in REUSED), _hour)
        },
        hours=sorted(_parts(rows, _hour), key=lambda part: int(part.name)),
    )


def _reuse(rows: Iterable[Row], outcome: str, name: str) -> Lever:
    """Of answers that nothing was computed for."""
    total = _sum(row for row in rows if row.place.outcome == outcome)
    saved = total.saved.get("cache", Saved())
    return Lever(
        name=name,
        requests=total.requests,
        tokens=total.prompt_tokens + total.completion_tokens,
        cost=_cost(saved),
        seconds=None if outcome == "shared" else total.saved_seconds,
        unknown=saved.unknown,
    )


def _drafts(rows: Sequence[Row]) -> Lever:
    """Of near answers that the model verified. What its misses take is told by those that it alone was asked for: one that a
    small tier was asked for first has waited for both, and verified a draft, too."""
    requests, seconds, known = 0, 0.0, True
    for model in {row.place.model for row in rows}:
        drafts = _sum(row for row in rows if (row.place.model, row.place.outcome) == (model, "draft"))
        misses = _sum(row for row in rows if (row.place.model, row.place.outcome) == (model, "miss"))
        requests += drafts.requests
        if not drafts.alone_tokens:
            known = known and not drafts.completion_tokens
        elif misses.alone_tokens:
            usual = misses.alone_seconds / misses.alone_tokens
            # Where they have taken longer, that is said, too.
            seconds += drafts.alone_tokens * usual - drafts.alone_seconds
        else:
            known = False
    return Lever(
        name="drafts",
        requests=requests,
        tokens=0,
        cost=None,
        seconds=seconds if known else None,
        is_estimate=True,
    )


def _prefix(rows: Iterable[Row]) -> Lever:
    computed = _sum(row for row in rows if row.place.outcome not in REUSED)
    return Lever(name="prefix KV", requests=None, tokens=computed.cached_tokens, cost=None, seconds=None)


def _money(total: Total) -> list[Lever]:
    """What is saved by asking another model, or by computing differently."""
    levers = {"routing": Saved()} | {by: saved for by, saved in total.saved.items() if by != "cache"}
    return [
        Lever(
            name=by,
            requests=saved.requests,
            tokens=0,
            cost=_cost(saved),
            seconds=saved.seconds or None,
            unknown=saved.unknown,
        )
        for by, saved in levers.items()
    ]


def _cost(saved: Saved) -> float | None:
    """As far as it is known; None where it is of no request."""
    return saved.cost if saved.requests else None


def _hour(row: Row) -> str:
    return str(row.place.hour)


def _parts(rows: Iterable[Row], name_of: Callable[[Row], str]) -> list[Part]:
    """Those that have most tokens first."""
    sums: dict[str, Total] = {}
    for row in rows:
        sums.setdefault(name_of(row), Total()).merge(row.total)
    parts = [Part(name, total) for name, total in sums.items()]
    return sorted(
        parts, key=lambda part: (-part.total.prompt_tokens - part.total.completion_tokens, part.name)
    )


def _sum(rows: Iterable[Row]) -> Total:
    total = Total()
    for row in rows:
        total.merge(row.total)
    return total
