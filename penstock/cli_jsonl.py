"""JSONL files of many requests: read, and gone through with many in flight."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")


def lines_of(file: Path) -> list[bytes]:
    """The lines of a file; some may be empty. Raises ConfigError when it cannot be read."""
    try:
        # Not splitlines: a text may hold what Unicode calls a line end.
        return file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.", param="input") from error


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects in a file's lines. Raises ConfigError naming the file and the line at fault."""
    return [_parsed(file, number, line) for number, line in enumerate(lines_of(file), 1) if line.strip()]


def _parsed(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{file}, line {number}: not valid JSON ({error}).", param="input") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file}, line {number}: it must be a JSON object.", param="input")
    return value


def drop_torn_end(output: Path) -> None:
    """A run that was killed may have left half a line; what comes next must not be glued to it."""
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(output, len(whole))


async def work_through(
    todo: Sequence[T], answer: Callable[[T], Awaitable[bool]], *, concurrency: int, done: int = 0
) -> int:
    """Has every line answered, so many at a time, and shows how far it is; the number of those that failed.

    `answer`: true unless the line failed. `done`: lines that were answered before.
    """
    from tqdm import tqdm

    failed = 0
    left = iter(todo)
    with tqdm(total=done + len(todo), initial=done, unit="line") as bar:

        async def work() -> None:
            nonlocal failed
            for line in left:
                if not await answer(line):
                    failed += 1
                bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(todo))):
                    group.create_task(work())
        except (
            BaseExceptionGroup
        ) as errors:  # the first has ended the others; whoever catches wants it as it is
            raise errors.exceptions[0] from None
    return failed
