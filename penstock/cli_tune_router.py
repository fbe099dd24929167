"""`penstock tune router`: reads its arguments, has the tiers served if no server is named. The work is in `tune/router/`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .cli_cache_examples import add_whose_arguments
from .config import Settings, add_arguments
from .errors import ConfigError

if TYPE_CHECKING:
    from .tune.router.collect import Tier
    from .tune.router.scoring import Price
    from .tune.router.workload import Item

T = TypeVar("T")

_SCORES = ("matcher", "agreement", "command")
_QUALITIES = "0.9,0.95,0.99"


def add_router_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tiers",
        dest="pair",  # `tiers` is a setting
        nargs=2,
        required=True,
        metavar=("SMALL", "LARGE"),
        help="names of models at --url; without it models to serve: 'builtin', a folder, MODEL:w8a8",
    )
    parser.add_argument("--url", help="the server that serves both, as http://host:port")
    parser.add_argument("--url-key", metavar="KEY", help="its API key")
    parser.add_argument(
        "--names",
        nargs=2,
        metavar=("SMALL", "LARGE"),
        help="what the route will call them (default: as they are served)",
    )
    data = parser.add_argument_group("questions, one of").add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--data", type=Path, metavar="FILE", help='JSONL of {"question", "accept": [...]} and its like'
    )
    data.add_argument("--from-cache", action="store_true", help="what the cache at --cache-path was asked")
    add_whose_arguments(parser.add_argument_group("of the cache"))
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--score",
        choices=_SCORES,
        help="what is right: by the data's matchers, or the same as the large tier, in words or in its command "
        "(default: matcher with --data, else agreement)",
    )
    judging.add_argument(
        "--qualities",
        default=_QUALITIES,
        metavar="Q,...",
        help="promises: shares of the large tier's right answers to keep (%(default)s)",
    )
    judging.add_argument(
        "--delta", type=float, default=0.05, metavar="D", help="a promise may fail in so many (%(default)s)"
    )
    judging.add_argument(
        "--buffer-tokens",
        default="0",
        metavar="N,...",
        help="after how many tokens a cascade decides; 0: after all (%(default)s)",
    )
    judging.add_argument("--seed", type=int, default=0, metavar="N", help="splits otherwise (%(default)s)")
    asking = parser.add_argument_group("asking")
    asking.add_argument("--max-tokens", type=int, default=256, metavar="N", help="of an answer (%(default)s)")
    asking.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="questions in flight (%(default)s)"
    )
    asking.add_argument(
        "--embeddings",
        metavar="MODEL",
        help="embedding model of that server, whose vectors of the question are looked at, too",
    )
    asking.add_argument(
        "--drafts",
        action=argparse.BooleanOptionalAction,
        help="time the large tier with the small one's answer as a draft (default: unless --url is given)",
    )
    asking.add_argument(
        "--prices",
        nargs=2,
        metavar=("IN/OUT", "IN/OUT"),
        help="of a million tokens of the small and the large tier, 0.15/0.6 (default: their seconds, as timed)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the router; a report is written beside it"
    )
    parser.add_argument(
        "--force", action="store_true", help="write what is not recommended, and replace files"
    )
    add_arguments(parser, names=("cache_path", "device", "threads"))


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """Raises PenstockError for a user's mistake, and where no router can be recommended."""
    _check(arguments)
    prices = _prices(arguments["prices"])
    qualities = _numbers(arguments["qualities"], float, "qualities", "between 0 and 1", lambda q: 0 < q < 1)
    buffers = _numbers(arguments["buffer_tokens"], int, "buffer_tokens", "0 or more", lambda n: n >= 0)

    from .cli_long_job import interruptible, progress_bars
    from .compress.evaluate.plot import require_matplotlib
    from .tune.router.job import RouterJob, make_router, work_folder
    from .tune.router.report import lines

    require_matplotlib()
    with interruptible() as check:
        items = _items(settings, arguments)
        small, large = _names(arguments)
        job = RouterJob(
            small=small,
            large=large,
            workload="the cache" if arguments["data"] is None else f"`{arguments['data'].name}`",
            score=_score(arguments),
            qualities=qualities,
            delta=arguments["delta"],
            buffers=buffers,
            max_tokens=arguments["max_tokens"],
            concurrency=arguments["concurrency"],
            drafts=arguments["url"] is None if arguments["drafts"] is None else arguments["drafts"],
            seed=arguments["seed"],
            prices=prices,
            embedding_model=arguments["embeddings"],
            identity=_identity(arguments),
            output=arguments["output"],
            force=arguments["force"],
        )
        work = work_folder(job, items)
        try:
            with _tiers(settings, arguments) as tiers, progress_bars(check) as progress:
                report = make_router(job, tiers, items, work, progress)
        except BaseException:
            work.close()
            raise
        work.done()
    print("\n".join(lines(report)))
    return 0


def _check(arguments: Mapping[str, Any]) -> None:
    """Before anything is loaded or asked."""
    output: Path = arguments["output"]
    if output.suffix != ".json":
        raise ConfigError(
            f"output is {output}; name a .json file, the report is written beside it.", param="output"
        )
    if output.exists() and not arguments["force"]:
        raise ConfigError(f"{output} is there already; name another, or give --force.", param="output")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output} cannot be written: its folder is not there.", param="output")
    if not 0 < arguments["delta"] < 1:
        raise ConfigError(f"delta is {arguments['delta']}; it must be between 0 and 1.", param="delta")
    for name in ("max_tokens", "concurrency"):
        if arguments[name] < 1:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least 1.", param=name)
    small, large = _names(arguments)
    if small == large:
        raise ConfigError(f"Both tiers are called {small!r}; tell them apart with --names.", param="names")
    if arguments["url"] is None and arguments["url_key"] is not None:
        raise ConfigError("url_key is of the server at --url; name that, too.", param="url_key")
    for name in ("tenant", "api_key", "namespace"):
        if arguments[name] is not None and not arguments["from_cache"]:
            raise ConfigError(f"{name} is of the cache; give --from-cache with it.", param=name)
    if arguments["score"] == "matcher" and arguments["from_cache"]:
        raise ConfigError(
            "What a cache was asked has no matchers; give --score agreement or command.", param="score"
        )


def _names(arguments: Mapping[str, Any]) -> list[str]:
    if arguments["names"] is not None or arguments["url"] is not None:
        return list(arguments["names"] or arguments["pair"])
    from .cli_model_spec import model_spec
    from .models.location import model_name

    return [model_name(model_spec(text).model) for text in arguments["pair"]]


def _score(arguments: Mapping[str, Any]) -> Any:
    return arguments["score"] or ("agreement" if arguments["from_cache"] else "matcher")


def _items(settings: Settings, arguments: Mapping[str, Any]) -> "list[Item]":
    from .tune.router.workload import items_of, read_workload

    if arguments["data"] is not None:
        return read_workload(arguments["data"], matched=_score(arguments) == "matcher")
    from .cli_cache_examples import examples_from_cache

    found = examples_from_cache(settings, arguments)
    print(found.summary, file=sys.stderr)
    return items_of(found.examples)


def _identity(arguments: Mapping[str, Any]) -> list[str]:
    """What is asked: a server's models by their names, a model served here by its weights."""
    if arguments["url"] is not None:
        return [arguments["url"], *arguments["pair"]]
    from .cli_model_spec import model_spec
    from .models.fingerprint import fingerprint
    from .models.location import resolve_model

    specs = [model_spec(text) for text in arguments["pair"]]
    return [
        fingerprint(resolve_model(spec.model), spec.quantize, spec.dtype, spec.kv_cache_dtype)
        for spec in specs
    ]


@contextmanager
def _tiers(settings: Settings, arguments: Mapping[str, Any]) -> "Iterator[tuple[Tier, Tier]]":
    """Where they are asked: at --url, or at servers that run until the block ends."""
    from .cli_talk import base_url
    from .tune.router.collect import Tier

    if arguments["url"] is not None:
        url = base_url(arguments["url"])
        small, large = (Tier(url, name, arguments["url_key"]) for name in arguments["pair"])
        yield small, large
        return
    from .tune.own_server import own_server

    with ExitStack() as stack:
        small, large = (
            Tier(stack.enter_context(own_server(_flags(settings, text, name))), name)
            for text, name in zip(arguments["pair"], arguments["names"] or arguments["pair"], strict=True)
        )
        yield small, large


def _flags(settings: Settings, text: str, name: str) -> list[str]:
    from .cli_model_spec import model_spec

    spec = model_spec(text)
    flags = {
        "model": spec.model,
        "served-model-name": name,
        "quantize": spec.quantize,
        "dtype": spec.dtype,
        "kv-cache-dtype": spec.kv_cache_dtype,
        "device": settings.device,
    }
    if settings.threads is not None:
        flags["threads"] = str(settings.threads)
    return ["--no-cache", *(word for flag, value in flags.items() for word in (f"--{flag}", value))]


def _prices(given: list[str] | None) -> "tuple[Price, Price] | None":
    from .tune.router.scoring import Price

    if given is None:
        return None
    found = []
    for text in given:
        try:
            paid, written = (float(part) for part in text.split("/"))
        except ValueError:
            paid = written = -1.0
        if min(paid, written) < 0:
            raise ConfigError(
                f"{text!r} is no price; write a million tokens read and written as 0.15/0.6.", param="prices"
            )
        found.append(Price(paid / 1e6, written / 1e6))
    return found[0], found[1]


def _numbers(
    text: str, kind: Callable[[str], T], name: str, must: str, allowed: Callable[[T], bool]
) -> list[T]:
    try:
        found = sorted({kind(part) for part in text.split(",")})  # type: ignore[type-var]
    except ValueError:
        found = []
    if not found or not all(map(allowed, found)):
        raise ConfigError(f"{name} is {text!r}; it must be numbers {must}, as in 1,2.", param=name)
    return found
