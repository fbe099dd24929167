"""`penstock cache`: looks into a cache, and changes it, while servers use it. Reads arguments; the work is in `cache/`."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_cache_examples import add_whose_arguments
from .cli_duration import seconds_of
from .config import Settings, add_arguments
from .errors import ConfigError

if TYPE_CHECKING:
    from .cache.opened import OpenedCache
    from .cache.selection import Selection

_WHERE = ("cache_path", "cache_max_bytes")
_SELECTORS = ("tenant", "api_key", "namespace", "older_than", "matching", "place")


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(parser))

    def action(name: str, about: str, *, settings: tuple[str, ...] = _WHERE) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=about, description=about, allow_abbrev=False)
        if settings:
            add_arguments(added, names=settings)
        return added

    stats = action("stats", "what is in it: entries, bytes, tenants, ages, the index")
    get = action("get", "entries whose question holds a text, the newest first; or one, whole")
    get.add_argument(
        "text", nargs="?", metavar="TEXT", help="what the question holds, in letters of any case"
    )
    get.add_argument("--place", metavar="HEX", help="print this entry whole")
    get.add_argument("--limit", type=int, default=10, metavar="N", help="most entries printed (%(default)s)")
    explain = action(
        "explain",
        "the questions nearest to a text, and what their answers would be used for",
        settings=(
            *_WHERE,
            "embedding_model",
            "model",
            "quantize",
            "dtype",
            "device",
            "cache_mode",
            "cache_similarity",
            "cache_guards",
            "cache_max_error_rate",
        ),
    )
    explain.add_argument("text", metavar="TEXT", help="a question, as a user would ask it")
    explain.add_argument(
        "--limit", type=int, default=3, metavar="K", help="neighbours a partition (%(default)s)"
    )
    explain.add_argument(
        "--partitions", type=int, default=10, metavar="N", help="most partitions (%(default)s)"
    )
    _add_scope(explain)
    trust = action(
        "trust",
        "what the trusted rung has learnt from verified near hits, and serves because of it",
        settings=(*_WHERE, "cache_max_error_rate"),
    )
    trust.add_argument("--plot", metavar="FILE", help="draw scores and thresholds (PNG, SVG, PDF)")
    purge = action("purge", "remove entries; running servers stop serving them at once")
    purge.add_argument("--all", action="store_true", help="remove everything")
    _add_selection(purge)
    purge.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    export = action("export", "write entries to a file of JSON lines")
    export.add_argument("file", metavar="FILE", help="a new file; it holds what was asked and answered")
    _add_selection(export)
    examples = action(
        "examples",
        "write what was asked and answered as data for `penstock distill` and the like",
    )
    examples.add_argument("file", metavar="FILE", help="a new file of JSON lines")
    add_whose_arguments(examples)
    import_ = action("import", "restore what `export` wrote; of two versions of an entry the newer one stays")
    import_.add_argument("file", metavar="FILE", help="what `export` wrote")
    import_.add_argument(
        "--skip-bad", action="store_true", help="leave bad lines out instead of stopping at one"
    )
    warm = action(
        "warm", "send the requests of a JSONL file to a server, so that its cache holds them", settings=()
    )
    warm.add_argument(
        "file",
        metavar="FILE",
        help='bodies with "messages" or "prompt", one a line; temperature is 0 where a body names neither '
        "temperature nor seed, since only what is deterministic is cached",
    )
    warm.add_argument("--url", required=True, help="the server, as http://host:port")
    warm.add_argument(
        "--api-key", metavar="KEY", help="whose cache is filled: each key is a tenant of its own"
    )
    warm.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests in flight (%(default)s)"
    )
    backup = action("backup", "copy the cache, without freed pages, while servers use it")
    backup.add_argument("folder", metavar="FOLDER", help="a new or empty folder")
    for printing in (stats, get, explain, trust):
        printing.add_argument("--json", action="store_true", help="print JSON")


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    action = arguments["action"]
    for name in ("limit", "partitions", "concurrency"):
        if arguments.get(name, 1) < 1:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least 1.", param=name)
    if action == "warm":
        from .cli_cache_warm import warm

        return warm(arguments)
    _check(action, arguments)
    from .cache.opened import opened_cache

    assert settings.cache_path is not None, "load_settings fills it in"
    with opened_cache(
        settings.cache_path, max_bytes=settings.cache_max_bytes, create=action == "import"
    ) as cache:
        return _ACTIONS[action](cache, settings, arguments)


def _check(action: str, arguments: Mapping[str, Any]) -> None:
    """Before anything is opened."""
    if action == "get" and (arguments["text"] is None) == (arguments["place"] is None):
        raise ConfigError("Give either a TEXT that questions hold, or --place HEX.", param="text")
    if action == "explain" and arguments["limit"] > 32:
        raise ConfigError(f"limit is {arguments['limit']}; a search gives 1 to 32 neighbours.", param="limit")
    if action == "purge":
        chosen = any(arguments[name] is not None for name in _SELECTORS)
        if chosen == arguments["all"]:
            raise ConfigError(
                "Say what to remove: --all, or some of --tenant, --api-key, --namespace, --older-than, --matching "
                "and --place.",
                param="all",
            )
        # As a variable of the shell that is not set would have it.
        whose = arguments["tenant"] or arguments["api_key"]
        for name, fine in (("api_key", False), ("matching", False), ("namespace", bool(whose))):
            if arguments[name] == "" and not fine:
                raise ConfigError(
                    f"{name} is empty, and would select far more than one {name}; give it, or say --all or --tenant.",
                    param=name,
                )
    if action == "import" and not Path(arguments["file"]).is_file():
        raise ConfigError(f"{arguments['file']} cannot be read: there is no such file.", param="file")


def _stats(cache: "OpenedCache", settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .cache.overview import overview
    from .cli_cache_show import show_overview

    show_overview(overview(cache, time.time()), _known_tenants(settings), as_json=arguments["json"])
    return 0


def _get(cache: "OpenedCache", _settings: Settings, arguments: Mapping[str, Any]) -> int:
    from itertools import islice

    from .cache.selection import contains
    from .cli_cache_show import show_entries, show_entry

    now = time.time()
    if arguments["place"] is not None:
        entry = cache.entry(_place(arguments["place"]))
        if entry is None:
            raise ConfigError(
                f"There is no entry at {arguments['place']}; it was evicted, purged, or never there.",
                param="place",
            )
        show_entry(entry, now, as_json=arguments["json"])
        return 0
    found = (
        entry
        for entry in cache.newest_first()
        if (question := entry.question) is not None and contains(question.text, arguments["text"])
    )
    show_entries(list(islice(found, arguments["limit"])), now, as_json=arguments["json"])
    return 0


def _explain(cache: "OpenedCache", settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .cli_cache_explain import explain

    explain(cache, settings, arguments, _selection(arguments), _known_tenants(settings))
    return 0


def _trust(cache: "OpenedCache", settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .cli_cache_trust import trust

    rate, tenants = settings.cache_max_error_rate, _known_tenants(settings)
    return trust(cache, rate, tenants, file=arguments["plot"], as_json=arguments["json"])


def _purge(cache: "OpenedCache", _settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .cache.operations import purge
    from .cli_cache_show import entries, size

    purged = purge(cache, _selection(arguments), dry_run=arguments["dry_run"])
    verb = "would be removed" if arguments["dry_run"] else "removed"
    print(f"{entries(purged.entries)} {verb}, {size(purged.num_bytes)} of completions.")
    if purged.labels:
        print(f"With them {purged.labels} labels of the trusted rung.")
    if purged.entries and not arguments["dry_run"]:
        print(
            "What a server was about to write is not among them. The file stays as long as it is: new entries fill it."
        )
    return 0


def _export(cache: "OpenedCache", _settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .cache.export import export
    from .cli_cache_show import entries, size

    file = Path(arguments["file"])
    count = export(cache, _selection(arguments), file)
    print(f"{entries(count)} written to {file}, {size(file.stat().st_size)}.")
    return 0


def _examples(cache: "OpenedCache", _settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .cli_cache_examples import write_examples

    print(f"{write_examples(cache, Path(arguments['file']), arguments)}.")
    return 0


def _import(cache: "OpenedCache", _settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .cache.export import import_
    from .cli_cache_show import entries

    done = import_(cache, Path(arguments["file"]), now=time.time(), skip_bad=arguments["skip_bad"])
    print(f"{entries(done.stored)} stored; here already: {done.present}, over: {done.over}.")
    if done.bad:
        print(f"Bad lines left out: {done.bad}.")
    if done.unindexed:
        assert cache.index is not None
        print(
            f"Found by exact repeats only, {done.unindexed}: the index here holds embeddings of {cache.index.dims} "
            "numbers, and theirs have another length."
        )
    return 0


def _backup(cache: "OpenedCache", _settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .cache.operations import backup
    from .cli_cache_show import size

    folder = Path(arguments["folder"])
    copied = backup(cache, folder)
    _, _, file_bytes = cache.environment.measure()
    print(f"{size(file_bytes)} copied to {folder}, where it takes {size(copied)}.")
    return 0


_ACTIONS = {
    "stats": _stats,
    "get": _get,
    "explain": _explain,
    "trust": _trust,
    "purge": _purge,
    "export": _export,
    "examples": _examples,
    "import": _import,
    "backup": _backup,
}


def _add_scope(parser: argparse.ArgumentParser) -> None:
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--tenant", metavar="NAME", help="of this tenant; 'default' is who sends no API key")
    whose.add_argument("--api-key", metavar="KEY", help="of the tenant with this API key")
    parser.add_argument("--namespace", metavar="NAME", help="of this namespace; '' is that of who names none")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    _add_scope(parser)
    parser.add_argument(
        "--older-than", metavar="AGE", help="stored so long ago: seconds, or 30m, 12h, 7d, 2w"
    )
    parser.add_argument(
        "--matching", metavar="TEXT", help="question or answer holds it, in letters of any case"
    )
    parser.add_argument("--place", metavar="HEX", help="this entry")


def _selection(arguments: Mapping[str, Any]) -> "Selection":
    from .cache.key import namespace_hash, tenant_hash
    from .cache.selection import Selection

    tenant, namespace, age = arguments["tenant"], arguments["namespace"], arguments.get("older_than")
    if arguments["api_key"] is not None:
        tenant = tenant_of_key(arguments["api_key"])
    return Selection(
        tenant=None if tenant is None else tenant_hash(tenant),
        namespace=None if namespace is None else namespace_hash(namespace),
        place=None if arguments.get("place") is None else _place(arguments["place"]),
        created_before=None if age is None else time.time() - seconds_of(age, "older-than"),
        matching=arguments.get("matching"),
    )


def tenant_of_key(api_key: str) -> str:
    """The tenant of a static key. Raises ConfigError for one of `penstock keys`, whose tenant has a name."""
    from .proxy.controls import tenant_of
    from .proxy.tenants.api_key import ApiKey

    if ApiKey.parse(api_key) is not None:
        raise ConfigError(
            "This is a key of `penstock keys`; give the name of its tenant with --tenant.", param="api_key"
        )
    return tenant_of(api_key)


def _known_tenants(settings: Settings) -> dict[bytes, str]:
    """Names for the hashes of tenants that are known here. Keys themselves are never printed."""
    from .cache.key import tenant_hash
    from .proxy.controls import DEFAULT_TENANT, tenant_of

    names = {tenant_hash(DEFAULT_TENANT): DEFAULT_TENANT}
    for number, key in enumerate(settings.api_keys, 1):
        names[tenant_hash(tenant_of(key))] = f"API key {number}"
    return names


def _place(text: str) -> bytes:
    from .cache.key import PLACE_BYTES

    try:
        place = bytes.fromhex(text)
    except ValueError:
        place = b""
    if len(place) != PLACE_BYTES:
        raise ConfigError(
            f"place is {text!r}; it must be {2 * PLACE_BYTES} hexadecimal digits, as `penstock cache get` prints them.",
            param="place",
        )
    return place
