"""`penstock prune`: the same model with less in it, recovered and judged before it is kept.

Reads arguments, and lends what only the engine can do; the work is in `compress/prune/`.
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
    from .compress.prune.job import PruneJob

_CUTS = ("mlp", "kv_groups", "layers")
_TARGETS = ("size", "speed_up")
# 1.2 million tokens, padding included: seven CPU minutes for the built-in model.
_RECOVERY_STEPS = 300
# A model that was cut is near to where it should be: at 1e-3, right for distillation, 40 steps of 2,048 tokens made the KL
# divergence of the built-in model without a quarter of its channels 0.13 of 0.035; at 3e-5 it fell.
_LEARNING_RATE = 2e-4


def add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="MODEL", help="'builtin', a folder or a hub id")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the pruned model's folder")
    what = parser.add_argument_group("what goes, any of")
    what.add_argument("--mlp", type=float, metavar="SHARE", help="of every layer's MLP channels")
    what.add_argument(
        "--kv-groups", type=float, metavar="SHARE", help="of the key-value heads, with their query heads"
    )
    what.add_argument("--layers", type=int, metavar="N", help="so many whole layers")
    target = parser.add_argument_group("or a combination of these for a target, one of")
    target.add_argument("--size", type=float, metavar="SHARE", help="of the parameters, that stays")
    target.add_argument(
        "--speed-up",
        type=float,
        metavar="X",
        help="times as many tokens per second at batch 1, as measured here",
    )
    add_text_arguments(parser)
    recovery = parser.add_argument_group("recovery, by learning from the model as it was")
    budget = recovery.add_mutually_exclusive_group()
    budget.add_argument(
        "--recovery-steps", type=int, metavar="N", help=f"0 for none (default: {_RECOVERY_STEPS}); or"
    )
    budget.add_argument("--recovery-minutes", type=float, metavar="M")
    recovery.add_argument(
        "--learning-rate", type=float, metavar="R", help=f"the highest (default: {_LEARNING_RATE})"
    )
    recovery.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third slower")
    gate = parser.add_argument_group("gate, on texts that are held out")
    gate.add_argument(
        "--max-kl",
        type=float,
        default=0.1,
        metavar="X",
        help="KL divergence from the model as it was, nats per token (%(default)s)",
    )
    gate.add_argument(
        "--max-perplexity-change",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="by which perplexity may rise (%(default)s)",
    )
    gate.add_argument(
        "--force", action="store_true", help="write what fails, and replace what is in the folder"
    )
    parser.add_argument("--no-speed", action="store_true", help="do not time it beside the model as it was")
    add_arguments(parser, names=("device", "threads", "cache_path", "cache_max_bytes"))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    _check(arguments)
    from .compress.folder import check_target
    from .compress.machine import use_threads
    from .compress.prune.report import summary
    from .compress.prune.run import prune

    check_target(arguments["output"], force=arguments["force"], sources=[arguments["source"]])
    texts = texts_of(settings, arguments)
    job = _job(settings, arguments, texts)
    use_threads(settings.threads)
    try:
        with interruptible() as check, progress_bars(check) as progress:
            measure = partial(speeds_of, settings, progress=progress)
            done = prune(
                job,
                texts.examples,
                progress=progress,
                measure_speed=None if arguments["no_speed"] else measure,
            )
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        raise
    print("\n".join(summary(job, done)))
    return 0


def _check(arguments: Mapping[str, Any]) -> None:
    cuts = [name for name in _CUTS if arguments[name] is not None]
    targets = [name for name in _TARGETS if arguments[name] is not None]
    if len(targets) > 1 or (targets and cuts):
        given = " and ".join(f"--{name.replace('_', '-')}" for name in (*cuts, *targets))
        raise ConfigError(
            f"{given} are given; a target chooses what goes by itself, so give one of --size and --speed-up, or any of "
            "--mlp, --kv-groups and --layers.",
            param=targets[0],
        )
    if not cuts and not targets:
        raise ConfigError(
            "Say what is to go: --mlp SHARE, --kv-groups SHARE, --layers N, or a target, --size SHARE or --speed-up X.",
            param="mlp",
        )
    if arguments["speed_up"] is not None and not arguments["speed_up"] > 1:
        raise ConfigError(f"speed_up is {arguments['speed_up']}; it must be above 1.", param="speed_up")
    if arguments["speed_up"] is not None and arguments["no_speed"]:
        raise ConfigError("speed_up is measured; leave --no-speed out.", param="speed_up")
    for name in ("learning_rate", "gradient_checkpointing"):
        if arguments["recovery_steps"] == 0 and arguments[name]:
            raise ConfigError(f"{name} is of recovery, which --recovery-steps 0 leaves out.", param=name)
    for name in ("recovery_minutes", "learning_rate", "max_kl"):
        if arguments[name] is not None and not arguments[name] > 0:
            raise ConfigError(f"{name} is {arguments[name]}; it must be above 0.", param=name)
    for name, least in (("recovery_steps", 0), ("max_perplexity_change", 0)):
        if arguments[name] is not None and not arguments[name] >= least:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least {least}.", param=name)


def _job(settings: Settings, arguments: Mapping[str, Any], texts: GivenTexts) -> "PruneJob":
    from .compress.prune.job import PruneJob

    steps, minutes = arguments["recovery_steps"], arguments["recovery_minutes"]
    if steps is None and minutes is None:
        steps = _RECOVERY_STEPS
    return PruneJob(
        model=arguments["source"],
        output=arguments["output"],
        source=texts.source,
        cache=texts.cache,
        mlp=arguments["mlp"],
        kv_groups=arguments["kv_groups"],
        layers=arguments["layers"],
        size=arguments["size"],
        speed_up=arguments["speed_up"],
        max_tokens=arguments["context"],
        recovery_steps=steps,
        recovery_minutes=minutes,
        learning_rate=arguments["learning_rate"] or _LEARNING_RATE,
        gradient_checkpointing=arguments["gradient_checkpointing"],
        most_kl=arguments["max_kl"],
        most_perplexity_change=arguments["max_perplexity_change"],
        device=settings.device,
        force=arguments["force"],
    )
