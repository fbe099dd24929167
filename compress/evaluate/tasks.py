"""Questions with right answers in a JSONL file, asked of a model and judged. Generates nothing itself."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CompressError
from ...models.tokenizer import Tokenizer
from ..texts import Example, prompt_ids, topic_of
from .findings import Findings
from .matchers import MATCHERS, Matcher

FORM = '{"messages": [...], "question": "..." or "prompt": "...", and "accept": [...] or "answer": "..."}'
# As many prompts go to the engine together: many times what it has in flight, and few enough to lose.
AT_ONCE = 256
# Numbers of tasks, from 0, and the token ids of their prompts -> those of the answers, without the token that ended each.
Generate = Callable[[list[int], list[list[int]]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked, in words for a report and as an example to render; and who judges the answer."""

    asked: str
    example: Example
    matcher: Matcher


@dataclass(frozen=True, slots=True)
class Answers:
    """In the order of the tasks."""

    texts: list[str]
    right: list[bool]
    topics: list[str | None]


def read_tasks(file: Path) -> list[Task]:
    """The tasks of a JSONL file, each line of `FORM`; a `question` is a user's message, a `prompt` text as it is.

    `match` says how the answer is judged: "regex" (where `accept` is given, by default), "exact" (where `answer` is),
    "command" or "refusal"; `topic` what is the same of tasks that ask the same in other words. Other keys are left alone.

    Raises CompressError naming the line that is wrong, or the file that has none or cannot be read.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise CompressError(f"{file} cannot be read: {error.strerror}.", param="tasks") from error
    tasks = [_task(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not tasks:
        raise CompressError(f"{file} is empty; each of its lines must be {FORM}.", param="tasks")
    return tasks


def answer_tasks(
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    generate: Generate,
    *,
    name: str = "the model",
    longest: int | None = None,
    findings: Findings | None = None,
) -> Answers:
    """Args:
        name: what messages, and `findings`, call the model.
        longest: tokens of a prompt that it takes.
        findings: answers to the same tasks, as far as an earlier call came; what is generated is added, AT_ONCE together.

    Raises CompressError where the model's template refuses a conversation, or it takes no prompts that are as long.
    """
    findings = Findings() if findings is None else findings
    prompts = [prompt_ids(tokenizer, task.example) for task in tasks]
    for number, prompt in enumerate(prompts, 1):
        if longest is not None and len(prompt) > longest:
            raise CompressError(
                f"Task {number} has {len(prompt)} tokens, and {name} takes {longest} before its answer; shorten it, or "
                "leave it out.",
                param="tasks",
            )
    keys = [f"{name}, task {number}" for number in range(len(tasks))]
    todo = [number for number, key in enumerate(keys) if findings.get(key) is None]
    for start in range(0, len(todo), AT_ONCE):
        numbers = todo[start : start + AT_ONCE]
        for number, ids in zip(
            numbers, generate(numbers, [prompts[number] for number in numbers]), strict=True
        ):
            findings.keep(keys[number], tokenizer.decode(ids))
    texts: list[str] = [findings.get(key) for key in keys]
    return Answers(
        texts,
        right=[task.matcher.accepts(text) for task, text in zip(tasks, texts, strict=True)],
        topics=[task.example.topic for task in tasks],
    )


def _task(where: str, line: bytes) -> Task:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise CompressError(
            f"{where}: not valid JSON ({error}); it must be {FORM}.", param="tasks"
        ) from error
    if not isinstance(value, dict):
        raise CompressError(f"{where}: it must be a JSON object, {FORM}.", param="tasks")
    asked, example = _example(where, value)
    return Task(asked, example, _matcher(where, value))


def _example(where: str, value: dict[str, Any]) -> tuple[str, Example]:
    topic = topic_of(value)
    match [name for name in ("messages", "question", "prompt") if name in value]:
        case ["messages"]:
            messages = value["messages"]
            if isinstance(messages, list) and messages and all(map(_is_message, messages)):
                return messages[-1]["content"], Example(messages=tuple(messages), topic=topic)
            raise CompressError(
                f'{where}: "messages" must be a list of {{"role": "...", "content": "..."}} with texts.',
                param="tasks",
            )
        case [("question" | "prompt") as name] if isinstance(value[name], str) and value[name]:
            text = value[name]
            if name == "prompt":
                return text, Example(prompt=text, topic=topic)
            return text, Example(messages=({"role": "user", "content": text},), topic=topic)
    raise CompressError(
        f'{where}: give one of "messages", "question" and "prompt", and a text; it must be {FORM}.',
        param="tasks",
    )


def _matcher(where: str, value: dict[str, Any]) -> Matcher:
    match value:
        case {"accept": _, "answer": _}:
            raise CompressError(f'{where}: give either "accept" or "answer".', param="tasks")
        case {"answer": str(answer)} if answer.strip():
            accepted, kind = [answer], value.get("match", "exact")
        case {"accept": [*patterns]} if patterns and all(isinstance(text, str) and text for text in patterns):
            accepted, kind = patterns, value.get("match", "regex")
        case _:
            raise CompressError(
                f'{where}: "answer" must be a text, or "accept" a list of texts; without them nothing is right.',
                param="tasks",
            )
    if kind not in MATCHERS:
        raise CompressError(
            f'{where}: "match" is {kind!r}; it must be one of {", ".join(MATCHERS)}.', param="tasks"
        )
    try:
        return MATCHERS[kind](accepted)
    except re.error as error:
        raise CompressError(
            f"{where}: {error.pattern!r} is no regular expression: {error}.", param="tasks"
        ) from error


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
    )
