"""What a request asks, read from its fields, whichever API they are of."""

from collections.abc import Mapping
from typing import Any


def question_in(fields: Mapping[str, Any]) -> str:
    """The last message of the user, or the prompt of what is no chat; empty where there is no text."""
    turns = fields.get("messages", fields.get("input"))
    if isinstance(turns, list):
        users = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") == "user"]
        return _text(users[-1].get("content")) if users else ""
    return _text(turns if turns is not None else fields.get("prompt"))


def _text(content: object) -> str:
    """Of a content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "\n".join(text for text in texts if isinstance(text, str))
