"""What a whole reply says, whichever API it is in: its text, and the calls that it makes."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson


def answer_text(body: bytes) -> str:
    """Of the first choice; empty where there is none. Two replies that call alike have the same text."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    return "".join(_said(reply)) if isinstance(reply, dict) else ""


def _said(reply: dict[str, Any]) -> Iterator[str]:
    choices = reply.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        message = choices[0].get("message")
        if not isinstance(message, dict):
            yield from _texts(choices[0].get("text"))
            return
        yield from _texts(message.get("content"))
        for call in _objects(message.get("tool_calls")):
            function = call.get("function")
            if isinstance(function, dict):
                yield _call(function.get("name"), function.get("arguments"))
    for part in (*_objects(reply.get("content")), *_objects(reply.get("output"))):
        if part.get("type") == "tool_use":
            yield _call(part.get("name"), part.get("input"))
        elif part.get("type") == "function_call":
            yield _call(part.get("name"), part.get("arguments"))
        else:
            yield from _texts(part.get("text"))
            for inner in _objects(part.get("content")):
                yield from _texts(inner.get("text"))


def _call(name: object, arguments: object) -> str:
    """Arguments in one form: keys in order, as text or as an object."""
    if isinstance(arguments, str):
        with suppress(orjson.JSONDecodeError):
            arguments = orjson.loads(arguments)
    return f"`{name} {orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()}`"


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value


def _objects(value: object) -> list[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
