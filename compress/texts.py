"""What models are compressed and judged with: conversations and texts, as token ids of which some are the model's to write.

A prompt and its answer are encoded apart, as they are when the answer is generated: the ids are those of serving.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CompressError, InvalidRequestError
from ..models.tokenizer import Tokenizer

FORMS = '{"messages": [...]}, {"prompt": "...", "completion": "..."} or {"text": "..."}'


def topic_of(line: Mapping[str, Any]) -> str | None:
    """What a line of JSONL is about: the same of those that say the same in other words. None where it does not tell."""
    topic = line.get("topic")
    return None if topic in (None, "") else str(topic)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, or a prompt and what follows it; a plain text is what follows nothing.

    Attributes:
        messages: of a conversation, as the API takes them; empty for a text.
        prompt, completion: of a text.
        topic: see `topic_of`. No model reads it, so it makes no other example.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str = ""
    completion: str = ""
    topic: str | None = field(default=None, compare=False, repr=False)

    @property
    def is_answered(self) -> bool:
        """Whether there is anything in it that a model wrote, or should."""
        if self.messages:
            return any(message.get("role") == "assistant" for message in self.messages)
        return bool(self.completion)


@dataclass(frozen=True, slots=True)
class Tokens:
    """One example: its ids [T], of each whether the model writes it (an answer with the token that ends it), its topic."""

    ids: list[int]
    learn: list[bool]
    topic: str | None = field(default=None, compare=False)


def read_examples(file: Path) -> list[Example]:
    """The examples in a JSONL file, one of `FORMS` a line and perhaps a "topic", other keys left alone.

    Raises CompressError naming the line that is none of them, or the file that has none or cannot be read.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise CompressError(f"{file} cannot be read: {error.strerror}.") from error
    examples = [
        _example(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not examples:
        raise CompressError(f"{file} is empty; each of its lines must be {FORMS}.")
    return examples


def tokenize(tokenizer: Tokenizer, examples: Iterable[Example], max_tokens: int) -> list[Tokens]:
    """The ids of each example, cut after `max_tokens`; those of which nothing to learn is left are left out.

    Raises CompressError where the model has no chat template, or it refuses a conversation.
    """
    found = []
    for example in examples:
        if not example.is_answered:
            continue
        pieces = _chat(tokenizer, example.messages) if example.messages else _text(tokenizer, example)
        ids = [token for piece, _ in pieces for token in piece][:max_tokens]
        learn = [learnt for piece, learnt in pieces for _ in piece][:max_tokens]
        # The first token of all is predicted by nothing.
        if any(learn[1:]):
            found.append(Tokens(ids, learn, example.topic))
    return found


def prompt_ids(tokenizer: Tokenizer, example: Example) -> list[int]:
    """The ids after which the model is to answer: all but the last answer, if the example ends with one."""
    if not example.messages:
        return tokenizer.encode(example.prompt)
    messages = list(example.messages)
    if messages[-1].get("role") == "assistant":
        messages.pop()
    return tokenizer.encode(_render(tokenizer, messages, True), add_special_tokens=False)


Piece = tuple[list[int], bool]


def _text(tokenizer: Tokenizer, example: Example) -> list[Piece]:
    if not example.prompt:
        return [(tokenizer.encode(example.completion), True)]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    answer = tokenizer.encode(example.completion, add_special_tokens=False)
    return [(tokenizer.encode(example.prompt), False), (answer + end, True)]


def _chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """What the template writes before each answer, and the answer with what ends it."""
    whole = _render(tokenizer, messages, False)
    pieces: list[Piece] = []
    done = 0
    for index, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before = _render(tokenizer, messages[:index], True)
        after = _render(tokenizer, messages[: index + 1], False)
        # A template may show earlier answers otherwise than they were asked for (without their thoughts): not learnt.
        if not (after.startswith(before) and whole.startswith(after) and len(before) >= done):
            continue
        pieces.append((tokenizer.encode(whole[done : len(before)], add_special_tokens=False), False))
        answer = tokenizer.encode(whole[len(before) : len(after)], add_special_tokens=False)
        end = _end_of(tokenizer, answer)
        pieces += [(answer[:end], True), (answer[end:], False)]
        done = len(after)
    pieces.append((tokenizer.encode(whole[done:], add_special_tokens=False), False))
    return [piece for piece in pieces if piece[0]]


def _end_of(tokenizer: Tokenizer, answer: list[int]) -> int:
    """How many tokens the model writes: up to the one that ends its turn, not what the template puts after it."""
    for index, token in enumerate(answer):
        if token == tokenizer.eos_token_id:
            return index + 1
    return len(answer)


def _render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], ask: bool) -> str:
    try:
        return tokenizer.render_chat([dict(message) for message in messages], add_generation_prompt=ask)
    except InvalidRequestError as error:
        raise CompressError(f"A conversation cannot be written for this model: {error.message}") from error


def _example(where: str, line: bytes) -> Example:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise CompressError(f"{where}: not valid JSON ({error}); it must be {FORMS}.") from error
    topic = topic_of(value) if isinstance(value, dict) else None
    match value:
        case {"messages": [*messages]} if messages and all(
            isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages
        ):
            return Example(messages=tuple(messages), topic=topic)
        case {"prompt": str(prompt), "completion": str(completion)}:
            return Example(prompt=prompt, completion=completion, topic=topic)
        case {"prompt": str(prompt)} if prompt:
            return Example(prompt=prompt, topic=topic)
        case {"text": str(text)} if text:
            return Example(completion=text, topic=topic)
    raise CompressError(f"{where}: it must be {FORMS}, with messages of text.")
