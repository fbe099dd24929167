"""`penstock keys`: makes and ends API keys, and says what their tenants may and what they have used, while servers run.

Reads arguments; the work is in `proxy/tenants/`.
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .cli_duration import seconds_of
from .config import Settings, add_arguments
from .errors import ConfigError

if TYPE_CHECKING:
    from .proxy.tenants.tenant import Tenant
    from .proxy.tenants.tenants import TenantStore

_WHERE = ("tenants_path",)
# Of `create` and `set`: a limit of the tenant's, or a field; "none" takes away what was set.
_LIMITS = ("rpm", "tpm", "concurrency", "budget", "window")
_FIELDS = ("models", "cache", "prompts", "priority", "weight")
_KINDS = {"rpm": int, "tpm": int, "concurrency": int, "budget": float, "priority": int, "weight": float}
_CHOICES = {
    "window": ("day", "month", "total"),
    "cache": ("off", "draft", "trusted"),
    "prompts": ("on", "off"),
}
_PREFIX = "tenant_"


def add_keys_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(parser))

    def action(name: str, about: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=about, description=about, allow_abbrev=False)
        add_arguments(added, names=_WHERE)
        return added

    create = action(
        "create", "make a key, and its tenant if there is none of that name; it is shown this once"
    )
    create.add_argument("tenant", metavar="TENANT", help="whose it is: letters, digits, '_', '-' and '.'")
    create.add_argument("--label", metavar="TEXT", default="", help="what to call the key in lists")
    _add_tenant_arguments(create)
    listing = action("list", "tenants and their keys")
    listing.add_argument("--all", action="store_true", help="keys that have ended, too")
    show = action("show", "what a tenant may, and what is taken of that now")
    show.add_argument("tenant", metavar="TENANT")
    change = action("set", "change what a tenant may; it holds from the next request on")
    change.add_argument("tenant", metavar="TENANT")
    _add_tenant_arguments(change)
    rotate = action("rotate", "make another key in place of one")
    rotate.add_argument("id", metavar="ID", help="the key's public id, as `list` has it, or the key itself")
    rotate.add_argument(
        "--grace", metavar="TIME", default="0", help="the old one still holds for: seconds, or 30m, 12h, 7d"
    )
    revoke = action("revoke", "end a key, or a tenant with all of its keys, at once")
    revoke.add_argument("id", metavar="ID", nargs="?", help="the key's public id, or the key itself")
    revoke.add_argument("--tenant", metavar="TENANT", help="all keys of this tenant, which is removed")
    usage = action("usage", "what was used, by tenant, day (UTC) and model")
    usage.add_argument("tenant", metavar="TENANT", nargs="?", help="of this tenant; default: all")
    usage.add_argument("--days", type=int, default=30, metavar="N", help="today and before (%(default)s)")
    for printing in (create, listing, show, rotate, usage):
        printing.add_argument("--json", action="store_true", help="print JSON")


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    action = arguments["action"]
    if action == "usage" and arguments["days"] < 1:
        raise ConfigError(f"days is {arguments['days']}; it must be at least 1.", param="days")
    if action == "revoke" and (arguments["id"] is None) == (arguments["tenant"] is None):
        raise ConfigError("Give either the ID of a key, or --tenant.", param="id")
    if action == "set" and not _given(arguments):
        raise ConfigError("Say what to change: --rpm, --tpm and so on; see --help.", param="set")
    from .proxy.tenants.tenants import TenantStore

    assert settings.tenants_path is not None, "load_settings fills it in"
    store = TenantStore(settings.tenants_path)
    try:
        _ACTIONS[action](store, arguments)
    finally:
        store.close()
    return 0


def _create(store: "TenantStore", arguments: Mapping[str, Any]) -> None:
    from .cli_keys_show import show_new_key
    from .errors import NotFoundError
    from .proxy.tenants.tenant import Tenant

    name = arguments["tenant"]
    try:
        store.directory.tenant(name)
    except NotFoundError:
        store.directory.put_tenant(_changed(Tenant(name=name), arguments))
    else:
        if given := _given(arguments):
            raise ConfigError(
                f"There is a tenant {name!r} already; leave out {', '.join(f'--{one}' for one in given)}, or change it "
                f"with `penstock keys set {name}`.",
                param=next(iter(given)),
            )
    key = store.directory.create_key(name, label=arguments["label"])
    show_new_key(key, name, as_json=arguments["json"])


def _list(store: "TenantStore", arguments: Mapping[str, Any]) -> None:
    from .cli_keys_show import show_list

    show_list(store, with_ended=arguments["all"], as_json=arguments["json"])


def _show(store: "TenantStore", arguments: Mapping[str, Any]) -> None:
    from .cli_keys_show import show_tenant

    show_tenant(store, store.directory.tenant(arguments["tenant"]), as_json=arguments["json"])


def _set(store: "TenantStore", arguments: Mapping[str, Any]) -> None:
    from .cli_keys_show import show_tenant

    tenant = _changed(store.directory.tenant(arguments["tenant"]), arguments)
    store.directory.put_tenant(tenant)
    show_tenant(store, tenant, as_json=False)


def _rotate(store: "TenantStore", arguments: Mapping[str, Any]) -> None:
    from .cli_keys_show import show_new_key

    identity, grace = _key_id(arguments["id"]), seconds_of(arguments["grace"], "grace")
    key = store.directory.rotate_key(identity, grace=grace)
    show_new_key(key, store.directory.key(key.id).tenant, as_json=arguments["json"])


def _revoke(store: "TenantStore", arguments: Mapping[str, Any]) -> None:
    if arguments["tenant"] is not None:
        ended = store.directory.remove_tenant(arguments["tenant"])
        print(
            f"Tenant {arguments['tenant']} is removed, and {ended} of its keys have ended. Its accounts stay."
        )
        return
    record = store.directory.revoke_key(_key_id(arguments["id"]))
    print(f"The key has ended, in all servers that share this folder. It was tenant {record.tenant}'s.")


def _usage(store: "TenantStore", arguments: Mapping[str, Any]) -> None:
    from .cli_keys_show import show_usage

    show_usage(store, arguments["tenant"], arguments["days"], as_json=arguments["json"])


_ACTIONS = {
    "create": _create,
    "list": _list,
    "show": _show,
    "set": _set,
    "rotate": _rotate,
    "revoke": _revoke,
    "usage": _usage,
}


def _add_tenant_arguments(parser: argparse.ArgumentParser) -> None:
    def limit(name: str, placeholder: str, about: str) -> None:
        # A setting is called cache, too.
        parser.add_argument(f"--{name}", dest=_PREFIX + name, metavar=placeholder, help=about)

    limit("rpm", "N", "requests a minute; 'none' takes a limit away, here and below")
    limit("tpm", "N", "tokens a minute, of prompts and completions")
    limit("concurrency", "N", "most requests at once")
    limit("budget", "MONEY", "most money in a window, in the currency of the prices")
    limit("window", "{day,month,total}", "of the budget, as UTC has them (default: month)")
    limit("models", "NAME,...", "models it may use, by the names of /v1/models (default: all)")
    limit("cache", "{off,draft,trusted}", "the most that is made of questions that mean the same")
    limit("prompts", "{on,off}", "keep its whole prompts, where the server keeps any (default: on)")
    limit("priority", "N", "the best it may ask for, -9 (first) to 9 (default: 0)")
    limit("weight", "W", "its share of the engine beside others' of 1 (default: 1)")


def _given(arguments: Mapping[str, Any]) -> dict[str, str]:
    given = {name: arguments.get(_PREFIX + name) for name in (*_LIMITS, *_FIELDS)}
    return {name: value for name, value in given.items() if value is not None}


def _changed(tenant: "Tenant", arguments: Mapping[str, Any]) -> "Tenant":
    """Raises ConfigError for what is no such value, and InvalidRequestError for one that makes no sense."""
    import msgspec

    from .proxy.tenants.tenant import Limits, Tenant

    limits, fields = msgspec.to_builtins(tenant.limits), msgspec.to_builtins(tenant)
    for name, text in _given(arguments).items():
        (limits if name in _LIMITS else fields)[name] = _value(name, text)
    defaults = {"window": Limits().window, "prompts": True, "priority": 0, "weight": 1.0}
    for name, value in defaults.items():
        into = limits if name in _LIMITS else fields
        into[name] = value if into[name] is None else into[name]
    return msgspec.convert({**fields, "limits": limits}, Tenant)


def _value(name: str, text: str) -> Any:
    if text == "none":
        return None
    if name == "models":
        return [one.strip() for one in text.split(",") if one.strip()]
    if name in _CHOICES:
        if text not in _CHOICES[name]:
            known = ", ".join(_CHOICES[name])
            raise ConfigError(f"--{name} is {text!r}; it must be one of {known}, or 'none'.", param=name)
        return text == "on" if name == "prompts" else text
    kind = _KINDS[name]
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"--{name} is {text!r}; it must be {what}, or 'none'.", param=name) from None


def _key_id(text: str) -> str:
    """A whole key may be given in its id's place."""
    from .proxy.tenants.api_key import ApiKey

    key = ApiKey.parse(text)
    return text if key is None else key.id
