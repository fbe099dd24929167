"""`penstock tune`: its arguments; hands over to what is tuned."""

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .cli_tune_levers import add_levers_arguments
from .cli_tune_router import add_router_arguments
from .config import Settings

_WHAT = {"levers": ".cli_tune_levers", "router": ".cli_tune_router"}


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(parser))
    about = "find the cheapest settings within limits, by serving a workload with them"
    add_levers_arguments(whats.add_parser("levers", help=about, description=about, allow_abbrev=False))
    about = "learn from both tiers' answers when the small one will do"
    add_router_arguments(whats.add_parser("router", help=about, description=about, allow_abbrev=False))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake, and where nothing can be recommended."""
    return int(import_module(_WHAT[arguments["what"]], __package__).run(settings, arguments))
