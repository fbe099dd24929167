"""An answer of OpenAI's chat API -> parts, how it ended, and what it cost: of a whole body, or of the events of a stream.

The first choice only: who is told of it in another API has asked for one.
"""

from collections.abc import Mapping
from typing import Any

from ...errors import UpstreamError
from ..answer import Part
from ..answer_writer import Finish, Reason
from ..usage import Usage
from .reading import tokens_of

_REASONS: dict[str, Reason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_TEXTS = (
    ("reasoning_content", "reasoning"),
    ("reasoning", "reasoning"),
    ("content", "content"),
    ("refusal", "content"),
)


class ChatParts:
    """A PartsReader (translation.py)."""

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.usage: Usage | None = None
        self._calls: dict[int, int] = {}  # the upstream's numbers -> ours

    @property
    def finished(self) -> bool:
        return self.finish is not None

    def read(self, event: Mapping[str, Any]) -> list[Part]:
        """The parts that a chunk brings. Raises UpstreamError."""
        if event.get("usage") is not None:
            self.usage = usage_of(event["usage"])
        try:
            return [part for choice in event.get("choices") or () for part in self._choice(choice, "delta")]
        except (AttributeError, TypeError) as error:
            raise UpstreamError("The upstream sent an event that is none of this API.") from error

    def whole(self, body: Mapping[str, Any]) -> list[Part]:
        """The parts of a body. Raises UpstreamError."""
        self.usage = None if body.get("usage") is None else usage_of(body["usage"])
        try:
            return [part for choice in body["choices"][:1] for part in self._choice(choice, "message")]
        except (AttributeError, KeyError, TypeError) as error:
            raise UpstreamError("The upstream's answer is none of this API.") from error

    def _choice(self, choice: Mapping[str, Any], field: str) -> list[Part]:
        if choice.get("index", 0) != 0:
            return []
        said = choice.get(field) or {}
        parts = [
            Part(kind, text)  # type: ignore[arg-type]  # the kinds of _TEXTS
            for name, kind in _TEXTS
            if isinstance(text := said.get(name), str) and text
        ]
        for place, call in enumerate(said.get("tool_calls") or ()):
            parts += self._call(call.get("index", place), call.get("function") or {})
        if (reason := choice.get("finish_reason")) is not None:
            self.finish = Finish(_REASONS.get(reason, "stop"))
        return parts

    def _call(self, number: int, function: Mapping[str, Any]) -> list[Part]:
        parts = []
        if number not in self._calls:
            self._calls[number] = len(self._calls)
            parts.append(Part("name", str(function.get("name") or ""), self._calls[number]))
        if arguments := function.get("arguments"):
            parts.append(Part("arguments", arguments, self._calls[number]))
        return parts


def usage_of(figures: dict[str, Any]) -> Usage | None:
    """None where a figure is missing."""
    tokens = tokens_of(figures)
    if tokens.prompt is None or tokens.completion is None:
        return None
    return Usage(tokens.prompt, tokens.completion, tokens.cached or 0)
