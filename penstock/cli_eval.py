"""`penstock eval`: hands over to what measures models, or one lever of one model. Reads no arguments itself."""

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .cli_eval_models import add_models_arguments
from .cli_eval_sparse import add_sparse_arguments
from .config import Settings

_WHAT = {"models": ".cli_eval_models", "sparse": ".cli_eval_sparse", "sparse-prompts": ".cli_eval_sparse"}


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(parser))

    def what(name: str, about: str) -> argparse.ArgumentParser:
        return whats.add_parser(name, help=about, description=about, allow_abbrev=False)

    add_models_arguments(
        what(
            "models",
            "several models, or one in several precisions: accuracy, speed and size beside each other",
        )
    )
    add_sparse_arguments(what("sparse", "attention to the keys that matter, of what is decoded"))
    add_sparse_arguments(what("sparse-prompts", "attention to the keys that matter, of prompts"))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    return int(import_module(_WHAT[arguments["what"]], __package__).run(settings, arguments))
