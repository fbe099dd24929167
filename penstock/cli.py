"""The `penstock` command: reads the arguments, hands over to one module per subcommand.

Imports nothing heavy itself.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from . import __version__
from .cli_cache import add_cache_arguments
from .cli_distill import add_distill_arguments
from .cli_eval import add_eval_arguments
from .cli_flywheel import add_flywheel_arguments
from .cli_keys import add_keys_arguments
from .cli_prune import add_prune_arguments
from .cli_quantize import add_quantize_arguments
from .cli_report import add_report_arguments
from .cli_tune import add_tune_arguments
from .config import add_arguments, load_settings
from .errors import PenstockError, Terminated

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_COMMANDS = {
    "serve": ".cli_serve",
    "chat": ".cli_chat",
    "complete": ".cli_complete",
    "batch": ".cli_batch",
    "eval": ".cli_eval",
    "cache": ".cli_cache",
    "keys": ".cli_keys",
    "quantize": ".cli_quantize",
    "prune": ".cli_prune",
    "distill": ".cli_distill",
    "tune": ".cli_tune",
    "flywheel": ".cli_flywheel",
    "top": ".cli_top",
    "report": ".cli_report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. A user's mistake is one line on stderr, never a traceback."""
    parsed = vars(_parser().parse_args(arguments))
    command = parsed.pop("command")
    if command == "version":
        print(f"penstock {__version__}")
        return 0
    try:
        if command == "doctor":
            return int(import_module(".cli_doctor", __package__).run(parsed, os.environ))
        settings = load_settings(parsed, os.environ)
        run = import_module(_COMMANDS[command], __package__).run
        return int(run(settings, parsed))
    except PenstockError as error:
        print(f"penstock {command}: {error.message}", file=sys.stderr)
        return EXIT_FAILED
    except Terminated:
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


class _Parser(argparse.ArgumentParser):
    """Without the page of usage before each message: the message says what to change."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}. See {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="penstock",
        description="An LLM server: OpenAI's API, its own engine, a cache of completions.",
        epilog="Every setting is also a key of the TOML file given by --config, and a PENSTOCK_* variable.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    serve = commands.add_parser("serve", help="serve a model over HTTP", allow_abbrev=False)
    add_arguments(serve, groups=("model", "server", "cache", "tenants", "engine"))
    chat = commands.add_parser(
        "chat", help="talk to a model, or to a server, in the terminal", allow_abbrev=False
    )
    _add_talk_arguments(chat)
    chat.add_argument("--system", metavar="TEXT", help="instructions that stand before the conversation")
    complete = commands.add_parser(
        "complete", help="complete one text, or every line of a JSONL file", allow_abbrev=False
    )
    complete.add_argument("prompt", nargs="?", help="the text; read from stdin when it is '-'")
    complete.add_argument(
        "--chat", action="store_true", help="the text is a user's message, not a raw prompt"
    )
    complete.add_argument(
        "--input", metavar="FILE", help='JSONL of {"prompt": ...} or {"messages": [...]}, "id" and parameters'
    )
    complete.add_argument("--output", metavar="FILE", help="JSONL of results; ids already there are skipped")
    complete.add_argument(
        "--concurrency", type=int, default=32, metavar="N", help="lines in flight (default: 32)"
    )
    _add_talk_arguments(complete)
    batch = commands.add_parser(
        "batch", help="answer a file of API requests, as OpenAI's batches do", allow_abbrev=False
    )
    batch.add_argument(
        "input", metavar="INPUT", help='JSONL of {"custom_id", "method": "POST", "url": "/v1/...", "body"}'
    )
    batch.add_argument(
        "--output", metavar="FILE", required=True, help="JSONL of replies; what is answered there is skipped"
    )
    batch.add_argument("--errors", metavar="FILE", help="JSONL of what failed (default: in the output too)")
    batch.add_argument(
        "--concurrency", type=int, default=32, metavar="N", help="requests in flight (default: 32)"
    )
    _add_server_arguments(batch)
    add_arguments(
        batch,
        groups=("model", "cache", "engine"),
        names=("adapters", "embedding_model", "max_body_bytes", "tenants_path", "unsupported"),
    )
    add_eval_arguments(
        commands.add_parser("eval", help="measure what models, or levers, save and cost in accuracy")
    )
    add_quantize_arguments(
        commands.add_parser(
            "quantize",
            help="make a model of 8 or 4 bits: calibrated, measured, kept if it passes",
            allow_abbrev=False,
        )
    )
    add_distill_arguments(
        commands.add_parser(
            "distill", help="train a small model to do as a large one does", allow_abbrev=False
        )
    )
    add_prune_arguments(
        commands.add_parser("prune", help="cut out what matters least, and recover", allow_abbrev=False)
    )
    add_tune_arguments(
        commands.add_parser("tune", help="find out by measuring which settings pay on your own traffic")
    )
    add_flywheel_arguments(
        commands.add_parser(
            "flywheel",
            help="from logged traffic to a cheaper model in service: distil, route, check, switch, and back",
            allow_abbrev=False,
        )
    )
    add_cache_arguments(
        commands.add_parser("cache", help="look into the cache, and change it, while servers use it")
    )
    add_keys_arguments(
        commands.add_parser("keys", help="API keys and their tenants: limits, budgets, and what was used")
    )
    doctor = commands.add_parser(
        "doctor", help="check whether serving with these settings would work", allow_abbrev=False
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    add_arguments(doctor, groups=("model", "server", "cache", "tenants", "engine"))
    top = commands.add_parser(
        "top", help="watch a running server: rates, latencies, cache, upstreams", allow_abbrev=False
    )
    top.add_argument("url", nargs="?", help="the server; default: where the settings would have one listen")
    top.add_argument("--once", action="store_true", help="print one frame and end")
    top.add_argument("--json", action="store_true", help="print one JSON object and end")
    top.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="between frames (%(default)s)"
    )
    add_arguments(top, names=("host", "port"))
    add_report_arguments(
        commands.add_parser(
            "report",
            help="what cache, routing and the rest have saved, while servers run",
            allow_abbrev=False,
        )
    )
    commands.add_parser("version", help="print the version")
    return parser


def _add_talk_arguments(parser: argparse.ArgumentParser) -> None:
    _add_server_arguments(parser)
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy (default: 0)", default=0.0
    )
    parser.add_argument("--seed", type=int, metavar="N", help="makes sampling reproducible")
    add_arguments(parser, groups=("model", "engine"))


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="a server to use instead of a model here, as http://host:port")
    parser.add_argument("--api-key", metavar="KEY", help="the server's key")
