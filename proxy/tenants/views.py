"""Tenants, keys and accounts as plain values, as the admin API and `penstock keys --json` show them. No secret is among
them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from .bucket import left
from .directory import ListedKey
from .ledger import Account, Line
from .tenant import Tenant
from .tenants import TenantStore
from .window import DAY, day_of, moment, window_end


def tenant_view(store: TenantStore, tenant: Tenant) -> dict[str, Any]:
    """What it may, and what is taken of that now."""
    standing, limits = store.counters.standing(tenant), tenant.limits
    now: dict[str, Any] = {"running": standing.running}
    if limits.rpm is not None:
        now["requests_left"] = left(standing.requests, limits.rpm)
    if limits.tpm is not None:
        now["tokens_left"] = left(standing.tokens, limits.tpm)
    if limits.budget is not None:
        now["spent"], now["reserved"] = standing.spent, standing.reserved
        now["window_ends"] = moment(window_end(limits.window, standing.at))
    return {**msgspec.to_builtins(tenant), "now": now}


def key_view(key: ListedKey) -> dict[str, Any]:
    return {**msgspec.to_builtins(key), "created": moment(key.created), "ends": moment(key.ends)}


def key_views(keys: Iterable[ListedKey]) -> list[dict[str, Any]]:
    return [key_view(key) for key in keys]


def usage_view(store: TenantStore, tenant: str | None, days: int) -> list[dict[str, Any]]:
    """One row for each tenant, day and model."""
    return [
        {"tenant": line.tenant, "day": date(line.day), "model": line.model, **account_view(line.account)}
        for line in usage_lines(store, tenant, days)
    ]


def usage_lines(store: TenantStore, tenant: str | None, days: int) -> list[Line]:
    """Today is the last of `days`."""
    return store.counters.lines(tenant, max(0, day_of(store.clock()) - days + 1))


def account_view(account: Account) -> dict[str, Any]:
    fields = {name: getattr(account, name) for name in Account.__struct_fields__ if name != "saved"}
    saved = {by: {"cost": saved.cost, "seconds": saved.seconds} for by, saved in account.saved.items()}
    return {**fields, "saved": saved}


def date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY, UTC).strftime("%Y-%m-%d")
