"""What users asked and were answered, read back: one tenant's, each once. Knows no model, and not what is learnt."""

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from ..errors import ConfigError
from .opened import Entry, OpenedCache
from .selection import Selection
from .values import CachedChoice, WholePrompt

Reason = Literal[
    "without prompt",  # it was kept without
    "over",  # its time to live has ended
    "with tools",  # the conversation has tools or calls in it, or it is a call
    "cut",  # it did not end by itself
    "empty",
    "repeated",  # it is another's, with the same prompt
    "continued",  # its conversation goes on in another, which has the answer in it
    "damaged",
]


class Exchange(msgspec.Struct, frozen=True):
    """`answer`: with what the chat template had begun of it."""

    prompt: WholePrompt
    answer: str

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """With the answer; empty where the prompt is a text."""
        messages = self.prompt.messages
        return [] if messages is None else [*messages, {"role": "assistant", "content": self.answer}]


class Exchanges(msgspec.Struct, frozen=True):
    """`left_out`: how many answers are not among them, and why; each choice of an entry is one."""

    found: list[Exchange]
    left_out: Counter[Reason]


def read_exchanges(cache: OpenedCache, selection: Selection, now: float) -> Exchanges:
    """Of the selected answers those that can be learnt from, in the order of their places.

    Raises ConfigError for a selection that names no tenant: nobody's prompts come out by oversight.
    """
    if selection.tenant is None:
        raise ConfigError("Say whose prompts are to be read: name a tenant.", param="tenant")
    left_out = Counter[Reason]()
    distinct: dict[bytes, Exchange] = {}
    for entry in cache.entries(selection.prefix):
        if not selection.includes(entry):
            continue
        for found in _exchanges(entry, now):
            if not isinstance(found, Exchange):
                left_out[found] += 1
            elif (digest := _digest(found)) in distinct:
                left_out["repeated"] += 1
            else:
                distinct[digest] = found
    # A client sends all turns again with each question: the last time has them all.
    earlier = {
        digest for found in distinct.values() for digest in _digests_of_answers(found.prompt.messages or ())
    }
    exchanges = [found for digest, found in distinct.items() if digest not in earlier]
    if len(exchanges) < len(distinct):
        left_out["continued"] = len(distinct) - len(exchanges)
    return Exchanges(exchanges, left_out)


def _exchanges(entry: Entry, now: float) -> Iterator[Exchange | Reason]:
    completion, prompt = entry.completion, entry.prompt
    if completion is None:
        yield "damaged"
        return
    for choice in completion.choices:
        if entry.record.expires <= now:
            yield "over"
        elif prompt is None:
            yield "without prompt"
        else:
            yield _exchange(prompt, choice)


def _exchange(prompt: WholePrompt, choice: CachedChoice) -> Exchange | Reason:
    if prompt.tools or choice.finish_reason == "tool_calls" or any(map(_has_calls, prompt.messages or ())):
        return "with tools"
    if choice.finish_reason != "stop":
        return "cut"
    if not choice.text.strip():
        return "empty"
    return Exchange(prompt, prompt.begun + choice.text)


def _has_calls(message: dict[str, Any]) -> bool:
    return "tool_calls" in message or message.get("role") == "tool"


def _digest(exchange: Exchange) -> bytes:
    """Whoever answered, and under whatever parameters."""
    if exchange.prompt.messages is None:
        texts = msgspec.json.encode([exchange.prompt.text, exchange.answer])
        return blake2b(texts, digest_size=16).digest()
    *_, last = _digests_of_answers(exchange.conversation)
    return last


def _digests_of_answers(messages: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Of each answer with all that stands before it."""
    digest = blake2b(digest_size=16)
    for message in messages:
        digest.update(msgspec.json.encode(message) + b"\n")
        if message.get("role") == "assistant":
            yield digest.digest()
