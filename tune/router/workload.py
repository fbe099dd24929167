"""What is asked: the questions of a JSONL file or of examples, each once, and who judges the answers, if anybody does."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from ...compress.texts import Example, topic_of
from ...errors import TuneError
from ...proxy.routing.learned import Question
from ..asked import Asked

if TYPE_CHECKING:
    from ...compress.evaluate.matchers import Matcher

FORM = '{"messages": [...]}, {"question": "..."} or {"prompt": "..."}'


@dataclass(frozen=True, slots=True)
class Item(Asked):
    """One question.

    Attributes:
        matcher: tells a right answer; None where agreement with the large tier counts.
    """

    matcher: "Matcher | None" = None

    @property
    def question(self) -> Question:
        if self.asked.messages:
            return Question.of_messages(self.asked.messages)
        return Question(self.asked.prompt)


def read_workload(file: Path, *, matched: bool) -> list[Item]:
    """The questions of a JSONL file: with `matched`, of those of `penstock eval models --tasks`; else each of `FORM`. A line
    may have a "topic" besides.

    Raises PenstockError naming the line that is none, or the file that has none or cannot be read.
    """
    if matched:
        from ...compress.evaluate.tasks import read_tasks  # loads torch

        return _once(Item(task.example, task.matcher) for task in read_tasks(file))
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise TuneError(f"{file} cannot be read: {error.strerror}.", param="data") from error
    found = [_item(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise TuneError(f"{file} is empty; each of its lines must be {FORM}.", param="data")
    return _once(found)


def items_of(examples: Iterable[Example]) -> list[Item]:
    """What was asked in them; what was answered is left out."""
    return _once(Item(_asked(example)) for example in examples)


def fingerprint(items: Iterable[Item]) -> str:
    digest = xxhash.xxh3_128()
    for item in items:
        digest.update(_key(item).encode() + b"\n")
    return digest.hexdigest()


def _once(items: Iterable[Item]) -> list[Item]:
    return list({_key(item): item for item in items}.values())


def _key(item: Item) -> str:
    return json.dumps(item.body, sort_keys=True)


def _asked(example: Example) -> Example:
    if example.messages and example.messages[-1].get("role") == "assistant":
        return replace(example, messages=example.messages[:-1])
    return replace(example, prompt=example.prompt or example.completion, completion="")


def _item(where: str, line: bytes) -> Item:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise TuneError(
            f"{where}: not valid JSON ({error}); it must be one of {FORM}.", param="data"
        ) from error
    topic = topic_of(value) if isinstance(value, dict) else None
    match value:
        case {"messages": [*messages]} if any(
            isinstance(m, dict) and m.get("role") == "user" for m in messages
        ):
            return Item(_asked(Example(messages=tuple(messages), topic=topic)))
        case {"question": str(text)} if text:
            return Item(Example(messages=({"role": "user", "content": text},), topic=topic))
        case {"prompt": str(text)} if text:
            return Item(Example(prompt=text, topic=topic))
    raise TuneError(f"{where}: it must be one of {FORM}.", param="data")
