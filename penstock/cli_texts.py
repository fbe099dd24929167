"""The texts that `penstock quantize` and `prune` go by: a file's, a cache's, or, where neither is named, the model's own."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_cache_examples import add_whose_arguments, examples_from_cache
from .config import Settings
from .errors import ConfigError

if TYPE_CHECKING:
    from .compress.texts import Example


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    texts = parser.add_argument_group("texts, by default written by the model itself")
    source = texts.add_mutually_exclusive_group()
    source.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help='JSONL of {"messages"}, {"prompt", "completion"} or {"text"}',
    )
    source.add_argument(
        "--from-cache", action="store_true", help="what the cache at --cache-path was asked, and answered"
    )
    add_whose_arguments(texts)
    texts.add_argument(
        "--context", type=int, default=512, metavar="N", help="tokens read of each text (%(default)s)"
    )


@dataclass(frozen=True, slots=True)
class GivenTexts:
    """Attributes:
    examples: None where the model is to write its own.
    source: where they come from, for the report; cache: see `QuantizeJob` and `PruneJob`.
    """

    examples: "list[Example] | None"
    source: str
    cache: str | None = None


def texts_of(settings: Settings, arguments: Mapping[str, Any]) -> GivenTexts:
    """As the arguments of `add_text_arguments` have it.

    Raises PenstockError naming what is wrong with an argument, the file or the cache.
    """
    if arguments["context"] < 2:
        raise ConfigError(f"context is {arguments['context']}; it must be at least 2.", param="context")
    for name in ("tenant", "api_key", "namespace"):
        if arguments[name] is not None and not arguments["from_cache"]:
            raise ConfigError(f"{name} is of the cache; give --from-cache with it.", param=name)
    from .compress.texts import read_examples

    if arguments["data"] is not None:
        return GivenTexts(read_examples(arguments["data"]), f"`{arguments['data'].name}`")
    if arguments["from_cache"]:
        found = examples_from_cache(settings, arguments)
        print(found.summary, file=sys.stderr)
        return GivenTexts(found.examples, "answers that a cache kept", found.identity)
    return GivenTexts(None, "written by the model itself")
