"""A kept answer of OpenAI's older two APIs as a stream: what a client that streams would have got, in few events."""

from typing import Any

import orjson

from ..sse import DONE, event, one_line


def as_stream(body: bytes, *, include_usage: bool) -> bytes:
    whole: dict[str, Any] = orjson.loads(body)
    choices, usage = whole.pop("choices"), whole.pop("usage", None)
    if whole.get("object") == "chat.completion":
        whole["object"] = "chat.completion.chunk"
    if include_usage:
        whole["usage"] = None
    events = [_event({**whole, "choices": [piece]}) for choice in choices for piece in _pieces(choice)]
    if include_usage:
        events.append(_event({**whole, "choices": [], "usage": usage}))
    return b"".join(events) + DONE


def _pieces(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """All it says, and then how it ended."""
    said = {**choice, "finish_reason": None}
    ended = {"index": choice["index"], "finish_reason": choice.get("finish_reason"), "logprobs": None}
    message = said.pop("message", None)
    if message is None:
        return [said, {**ended, "text": ""}]
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [{**call, "index": place} for place, call in enumerate(calls)]
    return [{**said, "delta": message}, {**ended, "delta": {}}]


def _event(value: dict[str, Any]) -> bytes:
    return event(one_line(orjson.dumps(value)))
