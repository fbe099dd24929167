"""The text of a whole reply, whichever API it is in."""

from typing import Any

import orjson


def answer_text(body: bytes) -> str:
    """Of the first choice; empty where there is none."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    return _text(reply) if isinstance(reply, dict) else ""


def _text(reply: dict[str, Any]) -> str:
    choices, content, output = reply.get("choices"), reply.get("content"), reply.get("output")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        message = choices[0].get("message")
        said = message.get("content") if isinstance(message, dict) else choices[0].get("text")
        return said if isinstance(said, str) else ""
    if isinstance(output, list):
        parts = [item.get("content") for item in output if isinstance(item, dict)]
        content = [part for some in parts if isinstance(some, list) for part in some]
    if not isinstance(content, list):
        return ""
    return "".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
