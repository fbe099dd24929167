"""An answer as the body that Anthropic's API returns for it, and what of that the stream (`writer.py`) tells in the same
words.
"""

import msgspec
import orjson

from ...errors import PenstockError
from ..answer import Part, new_call_id
from ..answer_writer import Finish
from ..usage import Usage
from .to_chat import CALL_PREFIX

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
# Thoughts come back with it: clients leave out those without one. Nobody checks it.
SIGNATURE = "penstock"


class Head(msgspec.Struct, frozen=True):
    """What is known of an answer before it comes.

    Attributes:
        max_tokens: as asked; None where nobody knows.
        shows_thoughts: off where the request wants thinking blocks without their text.
    """

    id: str
    model: str
    max_tokens: int | None = None
    shows_thoughts: bool = True


def message_body(head: Head, parts: list[Part], finish: Finish, usage: Usage) -> dict[str, object]:
    """Raises PenstockError for a call whose arguments are whole but no JSON object."""
    return {
        **envelope(head),
        "content": _content(head, parts, finish),
        **stop(head, finish, usage),
        "usage": {**counts(usage), "service_tier": "standard"},
    }


def envelope(head: Head) -> dict[str, object]:
    return {"id": head.id, "type": "message", "role": "assistant", "model": head.model}


def stop(head: Head, finish: Finish, usage: Usage) -> dict[str, object]:
    reason = _REASONS[finish.reason]
    if finish.stop_string is not None:
        reason = "stop_sequence"
    elif (
        finish.reason == "length"
        and head.max_tokens is not None
        and usage.completion_tokens < head.max_tokens
    ):
        reason = "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": finish.stop_string}


def counts(usage: Usage) -> dict[str, int]:
    """The prompt's tokens are those of all three counts together; writing to the cache costs nothing here."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def new_block(part: Part) -> dict[str, object]:
    """The block that begins with this part, still empty."""
    if part.kind == "content":
        return {"type": "text", "text": ""}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "tool_use", "id": CALL_PREFIX + new_call_id(), "name": part.text, "input": {}}


def _content(head: Head, parts: list[Part], finish: Finish) -> list[dict[str, object]]:
    blocks: list[dict[str, object]] = []
    texts: list[str] = []
    kind = None
    for part in parts:
        if part.kind != kind:
            blocks.append(new_block(part))
            texts.append("")
            kind = part.kind
        if part.kind == "name":
            kind = "arguments"
        else:
            texts[-1] += part.text
    for place, (block, text) in enumerate(zip(blocks, texts, strict=True)):
        if block["type"] == "text":
            block["text"] = text
        elif block["type"] == "thinking":
            block |= {"thinking": text if head.shows_thoughts else "", "signature": SIGNATURE}
        else:
            cut = finish.reason == "length" and place == len(blocks) - 1
            block["input"] = _input(str(block["name"]), text, cut=cut)
    return blocks


def _input(name: str, arguments: str, *, cut: bool) -> dict[str, object]:
    """Of a call cut by max_tokens nothing is shown: part of an object would look like a whole one."""
    try:
        found = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        found = None
    if isinstance(found, dict):
        return found
    if cut:
        return {}
    raise PenstockError(f"The model called {name!r} with arguments that are no JSON object.")
