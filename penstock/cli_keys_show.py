"""How `penstock keys` prints what it found: for people, or as JSON. A key's secret is printed once, when it is made."""

import time
from typing import TYPE_CHECKING, Any

from .cli_cache_show import duration, print_json
from .proxy.tenants.bucket import left
from .proxy.tenants.ledger import Account
from .proxy.tenants.views import account_view, key_views, tenant_view, usage_lines, usage_view
from .proxy.tenants.window import moment, window_end

if TYPE_CHECKING:
    from .proxy.tenants.api_key import ApiKey
    from .proxy.tenants.tenant import Tenant
    from .proxy.tenants.tenants import TenantStore


def show_new_key(key: "ApiKey", tenant: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"tenant": tenant, "id": key.id, "key": key.text})
        return
    print(key.text)
    print(f"This is the only time that it is shown. It is tenant {tenant}'s; its public id is {key.id}.")


def show_list(store: "TenantStore", *, with_ended: bool, as_json: bool) -> None:
    now = time.time()
    tenants = store.directory.tenants()
    keys = [key for key in store.directory.keys(None) if with_ended or key.ends is None or key.ends > now]
    if as_json:
        shown = [{**tenant_view(store, tenant), "keys": []} for tenant in tenants]
        by_name: dict[str, Any] = {tenant["name"]: tenant for tenant in shown}
        for view in key_views(keys):
            place = by_name.setdefault(view["tenant"], {"name": view["tenant"], "removed": True, "keys": []})
            place["keys"].append(view)
        print_json(list(by_name.values()))
        return
    if not tenants and not keys:
        print("There are no tenants; `penstock keys create NAME` makes one, and a key for it.")
    for name in dict.fromkeys([*(tenant.name for tenant in tenants), *(key.tenant for key in keys)]):
        found = next((tenant for tenant in tenants if tenant.name == name), None)
        print(f"{name}{': removed' if found is None else _in_short(found)}")
        for key in keys:
            if key.tenant == name:
                label = f"  {key.label}" if key.label else ""
                print(f"  {key.id}  made {moment(key.created)}{_end_of(key.ends, now)}{label}")


def show_tenant(store: "TenantStore", tenant: "Tenant", *, as_json: bool) -> None:
    if as_json:
        keys = key_views(store.directory.keys(tenant.name))
        print_json({**tenant_view(store, tenant), "keys": keys})
        return
    limits, standing = tenant.limits, store.counters.standing(tenant)
    print(f"tenant       {tenant.name}")
    for name, limit, missing in (
        ("rpm", limits.rpm, standing.requests),
        ("tpm", limits.tpm, standing.tokens),
    ):
        print(f"{name:<13}" + ("no limit" if limit is None else f"{limit}, {left(missing, limit)} left now"))
    most = "no limit" if limits.concurrency is None else f"at most {limits.concurrency}"
    print(f"concurrency  {most}, {standing.running} running")
    if limits.budget is None:
        print("budget       none")
    else:
        end = window_end(limits.window, standing.at)
        until = "" if end is None else f", ends {moment(end)}"
        print(
            f"budget       {limits.budget:g} ({limits.window}{until}): {standing.spent:.6g} spent, "
            f"{standing.reserved:.6g} reserved"
        )
    print(f"models       {'all' if tenant.models is None else ', '.join(tenant.models)}")
    print(f"cache        {tenant.cache or 'as the server'}")
    print(f"prompts      {'kept as the server keeps them' if tenant.prompts else 'never kept'}")
    print(f"priority     {tenant.priority} at best; weight {tenant.weight:g}")
    now = time.time()
    live = [key for key in store.directory.keys(tenant.name) if key.ends is None or key.ends > now]
    print(f"keys         {', '.join(key.id for key in live) or 'none'}")


def show_usage(store: "TenantStore", tenant: str | None, days: int, *, as_json: bool) -> None:
    rows = usage_view(store, tenant, days)
    if as_json:
        print_json(rows)
        return
    if not rows:
        print("Nothing was used.")
        return
    print(
        f"{'tenant':<16} {'day':<10} {'model':<24} {'requests':>8} {'reused':>7} {'prompt':>9} {'cached':>9} "
        f"{'completion':>10} {'cost':>10}"
    )
    total = Account()
    for line in usage_lines(store, tenant, days):
        total.merge(line.account)
    for row in rows:
        print(
            f"{row['tenant']:<16} {row['day']} {row['model']:<24} {row['requests']:>8} {row['reused']:>7} "
            f"{row['prompt_tokens']:>9} {row['cached_tokens']:>9} {row['completion_tokens']:>10} {row['cost']:>10.6g}"
        )
    _show_total(account_view(total))


def _show_total(total: dict[str, Any]) -> None:
    print(f"\n{total['cost']:.6g} spent, {duration(total['engine_seconds'])} of the engine's time.")
    for by, saved in total["saved"].items():
        print(f"Saved by {by}: {saved['cost']:.6g}, {duration(saved['seconds'])}.")
    if total["unknown_usage"]:
        print(f"Of {total['unknown_usage']} requests nobody knows the tokens; they are in no sum above.")
    if total["unknown_cost"]:
        print(
            f"Of {total['unknown_cost']} requests nobody knows the cost; budgets were charged {total['presumed_cost']:.6g} "
            "for them."
        )


def _in_short(tenant: "Tenant") -> str:
    limits = tenant.limits
    parts = [
        f"{value} {name}"
        for name, value in (("rpm", limits.rpm), ("tpm", limits.tpm), ("at once", limits.concurrency))
        if value is not None
    ]
    if limits.budget is not None:
        parts.append(
            f"{limits.budget:g} per {limits.window}" if limits.window != "total" else f"{limits.budget:g}"
        )
    if tenant.models is not None:
        parts.append(f"only {', '.join(tenant.models)}")
    return f": {'; '.join(parts)}" if parts else ": no limits"


def _end_of(ends: float | None, now: float) -> str:
    if ends is None:
        return ""
    return f", ended {moment(ends)}" if ends <= now else f", ends {moment(ends)}"
