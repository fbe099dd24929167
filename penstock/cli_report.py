"""`penstock report`: what each lever saved, from the hourly totals that servers keep beside their tenants.

Reads arguments; what is saved is computed in `proxy/observe/savings.py`.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_duration import seconds_of
from .config import Settings, add_arguments
from .errors import ConfigError

if TYPE_CHECKING:
    from .proxy.observe.savings import Savings


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        default="24h",
        metavar="TIME",
        help="so long ago, from the beginning of that hour: 90m, 24h, 7d, 2w (%(default)s)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--html", metavar="FILE", help="write a page that needs nothing else")
    add_arguments(parser, names=("tenants_path",))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises ConfigError when nothing is kept, or cannot be read; or the page cannot be written."""
    from .cli_cache_show import print_json
    from .proxy.observe.savings import savings_view
    from .report_text import report_text

    found = _savings(settings, seconds_of(arguments["since"], "since"))
    if arguments["json"]:
        print_json(savings_view(found))
    elif arguments["html"] is not None:
        _write_page(Path(arguments["html"]), found)
    else:
        print("\n".join(report_text(found)))
    return 0


def _savings(settings: Settings, age: float) -> "Savings":
    from .proxy.observe.savings import savings_of
    from .proxy.tenants.tenants import TenantStore
    from .proxy.tenants.totals import HOUR, KEPT_HOURS

    if not settings.tenants:
        raise ConfigError(
            "tenants is off: nothing is counted that could be reported. Leave it on.", param="tenants"
        )
    if age > KEPT_HOURS * HOUR:
        raise ConfigError(
            f"since is {age / 86400:g} days ago; totals are kept for {KEPT_HOURS // 24} days.", param="since"
        )
    assert settings.tenants_path is not None, "load_settings fills it in"
    now = time.time()
    since = int((now - age) // HOUR) * HOUR
    store = TenantStore(settings.tenants_path)
    try:
        return savings_of(store.totals.rows(since), since=since, until=int(now))
    finally:
        store.close()


def _write_page(file: Path, found: "Savings") -> None:
    from .report_page import report_page

    try:
        file.write_text(report_page(found), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written ({error.strerror}); name another file.", param="html"
        ) from error
    print(f"Written: {file}")
