"""`penstock tune levers`: reads its arguments. The work is in `tune/levers/`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .cli_model_spec import model_spec
from .config import Settings, add_arguments
from .errors import ConfigError

if TYPE_CHECKING:
    from .tune.levers.catalogue import Cascade, Served
    from .tune.levers.search import Limits


def add_levers_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="that may answer, the one first that all are held to: builtin:none builtin:w8a8 small-folder",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help='requests in their order: JSONL of {"question", "accept": [...]} and its like; see docs/eval.md',
    )
    parser.add_argument(
        "--drafter",
        action="append",
        default=[],
        metavar="MODEL",
        help="a smaller model that may guess; repeatable",
    )
    parser.add_argument(
        "--small", metavar="MODEL", help="a model that is asked first, where --router says it will do"
    )
    parser.add_argument(
        "--router",
        type=Path,
        metavar="FILE",
        help="of `penstock tune router`, for --small and the first model",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-loss",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of all answers, right ones that may be lost (%(default)s)",
    )
    limits.add_argument("--max-ttft", type=float, metavar="SECONDS", help="of 95 in 100 first tokens")
    limits.add_argument("--max-latency", type=float, metavar="SECONDS", help="of 95 in 100 answers")
    limits.add_argument(
        "--max-price", type=float, metavar="MONEY", help="of 1,000 answers, by --local-hour-price"
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--points", type=int, default=24, metavar="N", help="to begin with (%(default)s)")
    measuring.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="of the best, to know the noise (%(default)s)"
    )
    measuring.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests at a time (%(default)s)"
    )
    measuring.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="of an answer (%(default)s)"
    )
    measuring.add_argument(
        "--seed", type=int, default=0, metavar="N", help="tries other points (%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="table, plot and settings, a new folder"
    )
    parser.add_argument("--force", action="store_true", help="replace the folder if it has something in it")
    add_arguments(parser, names=("device", "threads", "embedding_model", "local_hour_price"))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake, and where nothing is cheaper within the limits."""
    limits = _limits(settings, arguments)

    from .cli_long_job import interruptible, progress_bars
    from .compress.distill.run import training_device
    from .compress.evaluate.plot import require_matplotlib
    from .tune.levers.catalogue import space_of
    from .tune.levers.job import LeversJob, tune
    from .tune.levers.report import lines
    from .tune.levers.workload import fingerprint, longest_prompt, read_requests

    require_matplotlib()
    requests = read_requests(arguments["data"])
    models = [_served(text) for text in arguments["models"]]
    cascade = _cascade(arguments)
    named = [
        *arguments["models"],
        *arguments["drafter"],
        *([arguments["small"]] if arguments["small"] else []),
    ]
    space = space_of(
        models,
        drafters=[_served(text) for text in arguments["drafter"]],
        cascade=cascade,
        longest_prompt=longest_prompt(requests),
        on_gpu=training_device(settings.device) == "cuda",
    )
    job = LeversJob(
        workload=f"`{arguments['data'].name}`",
        identity={
            "workload": fingerprint(arguments["data"]),
            "max_tokens": arguments["max_tokens"],
            "concurrency": arguments["concurrency"],
            "version": __version__,
            "settings": _common(settings),
            "models": [_fingerprint(text) for text in named],
            "router": None if cascade is None else fingerprint(cascade.router),
        },
        limits=limits,
        concurrency=arguments["concurrency"],
        max_tokens=arguments["max_tokens"],
        points=arguments["points"],
        repeats=arguments["repeats"],
        seed=arguments["seed"],
        common=_common(settings),
        output=arguments["output"],
        force=arguments["force"],
    )
    with interruptible() as check, progress_bars(check) as progress:
        report = tune(job, space, requests, progress)
    print("\n".join(lines(report)))
    return 0


def _limits(settings: Settings, arguments: Mapping[str, Any]) -> "Limits":
    """Before anything is loaded or asked."""
    for name in ("points", "repeats", "concurrency", "max_tokens"):
        if arguments[name] < 1:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least 1.", param=name)
    if not 0 <= arguments["max_loss"] <= 1:
        raise ConfigError(
            f"max_loss is {arguments['max_loss']}; it must be a share, from 0 to 1.", param="max_loss"
        )
    for name in ("max_ttft", "max_latency", "max_price"):
        if arguments[name] is not None and arguments[name] <= 0:
            raise ConfigError(f"{name} is {arguments[name]}; it must be above 0.", param=name)
    if (arguments["small"] is None) != (arguments["router"] is None):
        raise ConfigError("small and router go together; give both or neither.", param="small")
    if len(set(arguments["models"])) < len(arguments["models"]):
        raise ConfigError("A model is named twice; name each once.", param="models")
    cost = None
    if arguments["max_price"] is not None:
        if not settings.local_hour_price:
            raise ConfigError(
                "max_price is money, and an hour of this machine has no price; give --local-hour-price.",
                param="max_price",
            )
        cost = arguments["max_price"] / 1000 / (settings.local_hour_price / 3600)

    from .tune.levers.search import Limits

    return Limits(arguments["max_loss"], arguments["max_ttft"], arguments["max_latency"], cost)


def _served(text: str) -> "Served":
    from .tune.levers.catalogue import Served

    spec = model_spec(text)
    model = str(Path(spec.model).resolve()) if Path(spec.model).is_dir() else spec.model
    return Served(
        text,
        {
            "model": model,
            "quantize": spec.quantize,
            "dtype": spec.dtype,
            "kv_cache_dtype": spec.kv_cache_dtype,
        },
    )


def _cascade(arguments: Mapping[str, Any]) -> "Cascade | None":
    if arguments["small"] is None:
        return None
    from .proxy.routing.learned.router_file import read_router_file
    from .tune.levers.catalogue import Cascade

    found = read_router_file(arguments["router"])
    qualities = {
        threshold.quality
        for ruling in found.cascade
        for threshold in ruling.thresholds
        if threshold.score is not None
    }
    return Cascade(
        _served(arguments["small"]),
        arguments["router"].resolve(),
        found.small,
        found.large,
        sorted(qualities),
    )


def _fingerprint(text: str) -> str:
    """Of its weights, so that a folder that has become another model is one."""
    from .models.fingerprint import fingerprint
    from .models.location import resolve_model

    spec = model_spec(text)
    return fingerprint(resolve_model(spec.model), spec.quantize, spec.dtype, spec.kv_cache_dtype)


def _common(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {"device": settings.device, "embedding_model": settings.embedding_model}
    return found if settings.threads is None else {**found, "threads": settings.threads}
