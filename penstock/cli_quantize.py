"""`penstock quantize`: the same model in fewer bits, judged before it is kept.

Reads arguments, and lends what only the engine and the cache can do; the work is in `compress/quantize/`.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_engine_runs import speeds_of
from .cli_long_job import interruptible, progress_bars
from .cli_texts import GivenTexts, add_text_arguments, texts_of
from .config import Settings, add_arguments
from .errors import ConfigError

if TYPE_CHECKING:
    from .compress.quantize.job import QuantizeJob

_SCHEMES = ("w8a8", "w8a16", "w4a16", "auto")
_GROUPS = (32, 64, 128)
_DEFAULT_GROUP = 32


def add_quantize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="MODEL", help="'builtin', a folder or a hub id")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the quantized model's folder"
    )
    parser.add_argument(
        "--scheme",
        choices=_SCHEMES,
        required=True,
        help="8-bit weights and activations; 8- or 4-bit weights; or layer by layer the fewest bytes for --max-kl",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=_GROUPS,
        help=f"of 4 bits: columns that share a scale (default: {_DEFAULT_GROUP})",
    )
    parser.add_argument(
        "--kv", choices=("int8",), help="also have keys and values stored in 8 bits when served"
    )
    add_text_arguments(parser)
    gate = parser.add_argument_group("gate, on texts that are held back")
    gate.add_argument(
        "--judge",
        type=Path,
        metavar="FILE",
        help="JSONL like --data: all of its texts, instead of a part of those calibrated on",
    )
    gate.add_argument(
        "--max-kl",
        type=float,
        default=0.05,
        metavar="X",
        help="most KL divergence from the model as stored, nats per token (%(default)s)",
    )
    gate.add_argument(
        "--min-agreement",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="least share of tokens on which both agree (%(default)s)",
    )
    gate.add_argument(
        "--force", action="store_true", help="write what fails, and replace what is in the folder"
    )
    parser.add_argument("--no-speed", action="store_true", help="do not time it beside the model as stored")
    add_arguments(parser, names=("cache_path", "cache_max_bytes", "device", "threads"))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    _check(arguments)
    from .compress.folder import check_target
    from .compress.machine import use_threads
    from .compress.quantize.report import summary
    from .compress.quantize.run import quantize
    from .compress.texts import read_examples

    check_target(arguments["output"], force=arguments["force"], sources=[arguments["source"]])
    texts = texts_of(settings, arguments)
    judges = None if arguments["judge"] is None else read_examples(arguments["judge"])
    job = _job(settings, arguments, texts)
    use_threads(settings.threads)
    try:
        with interruptible() as check, progress_bars(check) as progress:
            measure = partial(speeds_of, settings, progress=progress)
            done = quantize(
                job,
                texts.examples,
                progress=progress,
                judges=judges,
                measure_speed=None if arguments["no_speed"] else measure,
            )
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        raise
    print("\n".join(summary(job, done)))
    return 0


def _check(arguments: Mapping[str, Any]) -> None:
    if not arguments["max_kl"] > 0:
        raise ConfigError(f"max_kl is {arguments['max_kl']}; it must be above 0.", param="max_kl")
    if not 0 <= arguments["min_agreement"] <= 1:
        raise ConfigError(
            f"min_agreement is {arguments['min_agreement']}; it is a share, from 0 to 1.",
            param="min_agreement",
        )
    if arguments["group_size"] is not None and arguments["scheme"] in ("w8a8", "w8a16"):
        raise ConfigError(
            f"group_size is of 4 bits; {arguments['scheme']} has a scale for each output channel. Leave it out.",
            param="group_size",
        )


def _job(settings: Settings, arguments: Mapping[str, Any], texts: GivenTexts) -> "QuantizeJob":
    from .compress.quantize.job import QuantizeJob

    return QuantizeJob(
        model=arguments["source"],
        output=arguments["output"],
        scheme=arguments["scheme"],
        source=texts.source,
        cache=texts.cache,
        group=arguments["group_size"] or _DEFAULT_GROUP,
        kv=arguments["kv"] is not None,
        context=arguments["context"],
        most_kl=arguments["max_kl"],
        least_agreement=arguments["min_agreement"],
        device=settings.device,
        force=arguments["force"],
    )
