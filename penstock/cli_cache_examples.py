"""What the cache was asked and answered, as examples to compress models with: for `penstock cache examples`, and for every
command that takes `--from-cache`.

Whose prompts are read is always said by name: by default those of who sends no API key, never those of all tenants.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Settings
from .errors import ConfigError

if TYPE_CHECKING:
    from .cache.exchanges import Exchange
    from .cache.opened import OpenedCache
    from .compress.texts import Example


@dataclass(frozen=True, slots=True)
class CacheExamples:
    """`summary`: one line that says whose they are, how many, and what was left out.

    `identity`: of which cache, and whose: the same when it holds others.
    """

    examples: "list[Example]"
    summary: str
    identity: str


@dataclass(frozen=True, slots=True)
class Whose:
    """`name`: as messages call it; a key is not shown. `id`: the tenant as the cache knows it."""

    name: str
    id: str


def add_whose_arguments(parser: argparse._ActionsContainer) -> None:
    """Of which tenants, and of which namespace, the cache's entries are read. Given again, a flag names another tenant."""
    parser.add_argument(
        "--tenant",
        action="append",
        metavar="NAME",
        help="of this tenant, and of each that is named so; default: 'default', who sends no API key",
    )
    parser.add_argument(
        "--api-key", action="append", metavar="KEY", help="of the tenant with this API key, likewise"
    )
    parser.add_argument(
        "--namespace", metavar="NAME", help="of this namespace; '' is that of who names none; default: all"
    )


def examples_from_cache(settings: Settings, arguments: Mapping[str, Any]) -> CacheExamples:
    """The examples in the cache at `settings.cache_path`; `arguments`: those of `add_whose_arguments`.

    Raises ConfigError where there is no cache, nothing of a tenant that is named, or nothing that can be learnt from.
    """
    from .cache.opened import opened_cache

    assert settings.cache_path is not None, "load_settings fills it in"
    with opened_cache(settings.cache_path, max_bytes=settings.cache_max_bytes) as cache:
        return _read(cache, whose_of(arguments), arguments["namespace"])


def write_examples(cache: "OpenedCache", file: Path, arguments: Mapping[str, Any]) -> str:
    """Writes them as `penstock distill --data` and the like read them, one a line; the summary.

    Raises ConfigError as `examples_from_cache`, and when the file exists already or cannot be written.
    """
    from .cache.private_file import private_file

    if file.exists():
        raise ConfigError(f"{file} exists already; name another file, or remove it.", param="file")
    found = _read(cache, whose_of(arguments), arguments["namespace"])
    try:
        with private_file(file) as output:
            for example in found.examples:
                fields: dict[str, Any] = {"messages": example.messages}
                if not example.messages:
                    fields = {"prompt": example.prompt, "completion": example.completion}
                output.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}.", param="file") from error
    return found.summary


def whose_of(arguments: Mapping[str, Any]) -> list[Whose]:
    """Raises ConfigError for a key whose tenant has a name, and for an empty one."""
    from .cli_cache import tenant_of_key
    from .proxy.controls import DEFAULT_TENANT

    if "" in (arguments["api_key"] or ()):
        raise ConfigError("api_key is empty; give the key, or --tenant default.", param="api_key")
    found = [Whose(f"tenant {name!r}", name) for name in arguments["tenant"] or ()]
    found += [Whose("the tenant of that API key", tenant_of_key(key)) for key in arguments["api_key"] or ()]
    return found or [Whose(f"tenant {DEFAULT_TENANT!r}", DEFAULT_TENANT)]


def _read(cache: "OpenedCache", whose: Sequence[Whose], namespace: str | None) -> CacheExamples:
    from .cache.exchanges import Reason, read_exchanges
    from .cache.key import namespace_hash, tenant_hash
    from .cache.selection import Selection

    path, names = cache.environment.path, ", ".join(one.name for one in whose)
    examples: list[Example] = []
    left_out = Counter[Reason]()
    for one in whose:
        selection = Selection(
            tenant=tenant_hash(one.id), namespace=None if namespace is None else namespace_hash(namespace)
        )
        read = read_exchanges(cache, selection, time.time())
        if not read.found and not read.left_out:
            part = "" if namespace is None else f" in the namespace {namespace!r}"
            raise ConfigError(
                f"The cache at {path} holds nothing of {one.name}{part}; `penstock cache stats` shows whose entries it "
                "holds. Name a tenant with --tenant, or with --api-key.",
                param="tenant",
            )
        examples += map(_example, read.found)
        left_out += read.left_out
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    if not examples:
        remedy = "Collect others."
        if left_out["without prompt"]:
            remedy = "Serve with cache_prompts = true: what is answered from then on is kept with its prompt."
        raise ConfigError(
            f"Nothing can be learnt from the {left_out.total()} answers of {names} in the cache at {path}: {reasons}. "
            f"{remedy}",
            param="cache_prompts",
        )
    identity = json.dumps([str(path.resolve()), [one.id for one in whose], namespace])
    count = "1 example" if len(examples) == 1 else f"{len(examples)} examples"
    return CacheExamples(
        examples,
        f"{count} of {names} from the cache" + (f"; left out: {reasons}" if reasons else ""),
        identity,
    )


def _example(exchange: "Exchange") -> "Example":
    from .compress.texts import Example

    if messages := exchange.conversation:
        return Example(messages=tuple(messages))
    return Example(prompt=exchange.prompt.text, completion=exchange.answer)
