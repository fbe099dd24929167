"""`penstock eval`: its arguments; hands over to what measures models, or one lever of one model."""

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from .cli_long_job import interruptible
from .config import Settings, add_arguments

MAX_TOKENS = 256  # of an answer to a task, where it is not said
_WHAT = {
    "models": ".cli_eval_models",
    "harness": ".cli_eval_harness",
    "sparse": ".cli_eval_sparse",
    "sparse-prompts": ".cli_eval_sparse",
}
_GO_ON = ("models", "harness")


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(parser))

    def what(name: str, about: str) -> argparse.ArgumentParser:
        return whats.add_parser(name, help=about, description=about, allow_abbrev=False)

    _add_models_arguments(
        what(
            "models",
            "several models, or one in several precisions: accuracy, speed and size beside each other",
        )
    )
    _add_harness_arguments(
        what("harness", "tasks of lm-evaluation-harness, of several models beside each other")
    )
    _add_sparse_arguments(what("sparse", "attention to the keys that matter, of what is decoded"))
    _add_sparse_arguments(what("sparse-prompts", "attention to the keys that matter, of prompts"))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    try:
        with interruptible():
            return int(import_module(_WHAT[arguments["what"]], __package__).run(settings, arguments))
    except KeyboardInterrupt:
        kept = "the same command goes on from here" if _is_kept(arguments) else "nothing was written"
        print(f"penstock eval: interrupted; {kept}.", file=sys.stderr)
        raise


def _is_kept(arguments: Mapping[str, Any]) -> bool:
    """Whether anything was found by then, and lies beside the output."""
    from .compress.folder import work_path

    output = arguments["output"]
    return arguments["what"] in _GO_ON and output is not None and work_path(Path(output)).exists()


def _add_which_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="'builtin', a folder or a hub id, and how to serve it: MODEL:w8a8, MODEL:w4a16+kv8, MODEL:float32",
    )


def _add_harness_arguments(parser: argparse.ArgumentParser) -> None:
    _add_which_models(parser)
    parser.add_argument(
        "--tasks", required=True, metavar="NAME,...", help="as `lm_eval --tasks list` names them"
    )
    parser.add_argument("--include", metavar="FOLDER", help="tasks of your own: the harness's YAML files")
    parser.add_argument("--limit", type=int, metavar="N", help="first questions of each task (default: all)")
    parser.add_argument(
        "--shots",
        type=int,
        metavar="N",
        help="examples before each question, unless the task says 0 (default: as it says)",
    )
    parser.add_argument("--chat", action="store_true", help="ask through the model's chat template")
    parser.add_argument("--output", metavar="DIR", help="also write the table and JSON into this new folder")
    parser.add_argument("--force", action="store_true", help="replace the folder if it has something in it")
    add_arguments(parser, names=("dtype", "device", "threads"))


def _add_models_arguments(parser: argparse.ArgumentParser) -> None:
    _add_which_models(parser)
    parser.add_argument(
        "--reference", metavar="MODEL", help="what texts are compared with (default: the first)"
    )
    parser.add_argument(
        "--text", metavar="FILE", help='JSONL of {"messages"}, {"prompt", "completion"} or {"text"}'
    )
    parser.add_argument(
        "--tasks",
        metavar="FILE",
        help='JSONL of {"question", "accept": [...]} and its like; see docs/eval.md',
    )
    parser.add_argument("--speed", action="store_true", help="time decoding at batch 1 and 16")
    parser.add_argument(
        "--context",
        type=int,
        default=1024,
        metavar="N",
        help="tokens read of each text, at most (%(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help=f"of an answer to a task (default: {MAX_TOKENS})"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="also write the table, JSON, the answers and a plot into this new folder",
    )
    parser.add_argument("--force", action="store_true", help="replace the folder if it has something in it")
    add_arguments(parser, names=("dtype", "device", "threads"))


def _add_sparse_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mass",
        default="0.8,0.9,0.95,0.99",
        metavar="P,...",
        help="shares of the attention to keep (%(default)s)",
    )
    parser.add_argument("--text", metavar="FILE", help="what is read; default: Python's standard library")
    parser.add_argument(
        "--decoded",
        type=int,
        default=256,
        metavar="N",
        help="last tokens whose perplexity is taken (%(default)s)",
    )
    parser.add_argument(
        "--needles", type=int, default=20, metavar="N", help="facts hidden and asked for (%(default)s)"
    )
    parser.add_argument("--output", metavar="DIR", help="also write tables, JSON and a plot here")
    add_arguments(parser, groups=("model",))
