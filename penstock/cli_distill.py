"""`penstock distill`: a small model learns from a large one. Reads arguments; the work is in `compress/distill/`."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_cache_examples import add_whose_arguments, examples_from_cache
from .cli_long_job import interruptible
from .config import Settings, add_arguments
from .errors import ConfigError

if TYPE_CHECKING:
    from .compress.distill.job import Distilled, DistillJob
    from .compress.texts import Example
    from .compress.training.team import Team

_LOSSES = ("forward-kl", "reverse-kl", "jsd")
_BETA = 0.5


def add_distill_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="'builtin', a folder or a hub id")
    student = parser.add_argument_group("student, one of").add_mutually_exclusive_group(required=True)
    student.add_argument(
        "--student", metavar="MODEL", help="a model with the teacher's vocabulary, pruned from it for one"
    )
    student.add_argument(
        "--layers", type=int, metavar="N", help="so many of the teacher's layers, evenly spaced"
    )
    student.add_argument(
        "--student-config", type=Path, metavar="FILE", help="a config.json, made with fresh weights"
    )
    data = parser.add_argument_group("data, one of").add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help='JSONL of {"messages"}, {"prompt", "completion"} or {"text"}',
    )
    data.add_argument(
        "--generate", type=Path, metavar="FILE", help="JSONL of the same, whose prompts the teacher answers"
    )
    data.add_argument(
        "--from-cache", action="store_true", help="what the cache at --cache-path was asked, and answered"
    )
    add_whose_arguments(parser.add_argument_group("of the cache"))
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--loss", choices=_LOSSES, default="forward-kl", help="how far from the teacher (%(default)s)"
    )
    loss.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divides both models' logits (%(default)s)",
    )
    loss.add_argument("--beta", type=float, metavar="B", help=f"of jsd, between 0 and 1 (default: {_BETA})")
    loss.add_argument(
        "--cross-entropy",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the loss, with the text (%(default)s)",
    )
    loss.add_argument(
        "--hidden",
        type=float,
        default=0.0,
        metavar="W",
        help="weight of the last hidden states (%(default)s)",
    )
    loss.add_argument(
        "--on-policy",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the steps, by the student's own answers (%(default)s)",
    )
    training = parser.add_argument_group("training")
    budget = training.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, metavar="N", help="how long; or")
    budget.add_argument("--minutes", type=float, metavar="M", help="of training time")
    training.add_argument(
        "--batch-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="of a step and device, padding included (%(default)s)",
    )
    training.add_argument(
        "--context", type=int, default=1024, metavar="N", help="tokens read of each text (%(default)s)"
    )
    training.add_argument(
        "--learning-rate", type=float, default=1e-3, metavar="R", help="the highest (%(default)s)"
    )
    training.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third slower")
    training.add_argument(
        "--held-out", type=float, default=0.05, metavar="SHARE", help="of the prompts (%(default)s)"
    )
    training.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all that is random (%(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the student's folder")
    parser.add_argument("--force", action="store_true", help="replace what is in it")
    add_arguments(parser, names=("device", "quantize", "cache_path", "cache_max_bytes"))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake."""
    _check(arguments)
    from .compress.distill.run import assist, check_job, training_device
    from .compress.training.team import team_of

    job = _job(settings, arguments)
    check_job(job)
    with team_of(_processes(), training_device(job.device)) as team:
        if team.leads:
            try:
                job, done = _led(settings, arguments, job, team)
            except KeyboardInterrupt:
                print("Interrupted; the same command goes on from here.", file=sys.stderr)
                raise
            print("\n".join(_summary(job, done)), flush=True)
        else:
            with interruptible():
                assist(job, team)
        team.wait()  # whoever ended before the student is written would have the launcher end the leader
    if team.place.size > 1:
        # A thread may outlive Python and abort the process (three of four runs of the test): failure, to a launcher.
        os._exit(0)
    return 0


def _processes() -> int:
    """How many a launcher (accelerate's, torchrun) started of this command."""
    return int(os.environ["WORLD_SIZE"]) if {"WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys() else 1


def _led(
    settings: Settings, arguments: Mapping[str, Any], job: "DistillJob", team: "Team"
) -> "tuple[DistillJob, Distilled]":
    from .compress.texts import read_examples

    if arguments["from_cache"]:
        found = examples_from_cache(settings, arguments)
        print(found.summary, file=sys.stderr)
        job = replace(job, data="answers that a cache kept", cache=found.identity)
        return job, _distilled(job, found.examples, team)
    if arguments["data"] is not None:
        return job, _distilled(job, read_examples(arguments["data"]), team)
    from .cli_distill_answers import teachers_answers

    with teachers_answers(settings, job, arguments["generate"]) as examples:
        return job, _distilled(job, examples, team)


def _distilled(job: "DistillJob", examples: "Sequence[Example]", team: "Team") -> "Distilled":
    from .compress.distill.run import distill

    with interruptible():
        return distill(job, examples, team)


def _check(arguments: Mapping[str, Any]) -> None:
    for name in ("steps", "minutes", "batch_tokens", "learning_rate", "temperature"):
        if arguments[name] is not None and not arguments[name] > 0:
            raise ConfigError(f"{name} is {arguments[name]}; it must be above 0.", param=name)
    if arguments["context"] < 2:
        raise ConfigError(f"context is {arguments['context']}; it must be at least 2.", param="context")
    for name in ("cross_entropy", "on_policy"):
        if not 0 <= arguments[name] <= 1:
            raise ConfigError(f"{name} is {arguments[name]}; it is a share, from 0 to 1.", param=name)
    if arguments["beta"] is not None and arguments["loss"] != "jsd":
        raise ConfigError(f"beta is of --loss jsd; leave it out with {arguments['loss']}.", param="beta")
    for name in ("held_out", "beta"):
        if arguments[name] is not None and not 0 < arguments[name] < 1:
            raise ConfigError(f"{name} is {arguments[name]}; it must be between 0 and 1.", param=name)
    for name in ("tenant", "api_key", "namespace"):
        if arguments[name] is not None and not arguments["from_cache"]:
            raise ConfigError(f"{name} is of the cache; give --from-cache with it.", param=name)
    if arguments["hidden"] < 0:
        raise ConfigError(f"hidden is {arguments['hidden']}; it must be at least 0.", param="hidden")


def _job(settings: Settings, arguments: Mapping[str, Any]) -> "DistillJob":
    from .compress.distill.job import DistillJob
    from .compress.distill.objective import DistillSettings
    from .compress.training.loop import TrainingSettings
    from .compress.training.schedule import Budget

    file = arguments["data"] or arguments["generate"]
    data = "the cache" if file is None else f"`{file.name}`"
    if arguments["generate"] is not None:
        data += ", answered by the teacher"
    return DistillJob(
        teacher=arguments["teacher"],
        output=arguments["output"],
        data=data,
        training=TrainingSettings(
            Budget(arguments["steps"], arguments["minutes"]),
            batch_tokens=arguments["batch_tokens"],
            learning_rate=arguments["learning_rate"],
            gradient_checkpointing=arguments["gradient_checkpointing"],
            seed=arguments["seed"],
        ),
        student=arguments["student"],
        layers=arguments["layers"],
        config=arguments["student_config"],
        loss=DistillSettings(
            arguments["loss"],
            temperature=arguments["temperature"],
            beta=_BETA if arguments["beta"] is None else arguments["beta"],
            cross_entropy=arguments["cross_entropy"],
            hidden=arguments["hidden"],
        ),
        on_policy=arguments["on_policy"],
        max_tokens=arguments["context"],
        held_out_share=arguments["held_out"],
        device=settings.device,
        force=arguments["force"],
    )


def _summary(job: "DistillJob", done: "Distilled") -> Iterator[str]:
    comparison, worth, training = done.measured.comparison, done.measured.acceptance, done.training
    yield f"{job.output}: {training.steps} steps in {training.seconds / 60:.1f} minutes"
    yield (
        f"beside its teacher, on {done.measured.texts} held-out texts: KL {comparison.kl.value:.4f}, "
        f"perplexity {comparison.perplexity.value:.4g} (teacher {comparison.reference_perplexity.value:.4g})"
    )
    yield (
        f"as its draft model: {100 * worth.greedy.value:.1f} % of greedy tokens stand, "
        f"{100 * worth.sampled.value:.1f} % of sampled ones"
    )
