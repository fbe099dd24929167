"""An answer of Anthropic's API -> parts, how it ended, and what it cost: of a whole body, or of the events of a stream.

What has no place among parts (blocks of Anthropic's own tools) is an error: an answer is told whole or not at all. Events
and deltas of kinds unknown here are passed over, as Anthropic asks of its readers.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from ...errors import UpstreamError
from ..answer import Part
from ..answer_writer import Finish, Reason
from ..usage import Usage, count_of

_REASONS: dict[str, Reason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class BrokenAnswerError(UpstreamError):
    """What was to be an answer is none.

    `kind`: Anthropic's word for the reason; None where the answer itself is at fault.
    """

    def __init__(self, message: str, *, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


class MessageReader:
    """Reads one answer: a stream, an event at a time, or all of a body.

    Attributes:
        finish: how the answer ended; None until that is told.
        usage: of the whole answer once it is finished; None where it was not told.
        finished: whether the answer came to its end; a stream that breaks off before is none.
    """

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.finished = False
        self._counts: dict[str, int] = {}
        self._call = -1
        self._in_call = False
        # What the open call's block brought along, until the first of its arguments comes.
        self._input: object = None

    @property
    def usage(self) -> Usage | None:
        counts = self._counts
        if not {"input_tokens", "output_tokens"} <= counts.keys():
            return None
        cached = counts.get("cache_read_input_tokens", 0)
        return Usage(
            prompt_tokens=counts["input_tokens"] + counts.get("cache_creation_input_tokens", 0) + cached,
            completion_tokens=counts["output_tokens"],
            cached_tokens=cached,
        )

    def read(self, event: Mapping[str, Any]) -> list[Part]:
        """The parts that it brings. Raises BrokenAnswerError, also for an event that tells of one."""
        kind = event.get("type")
        if kind == "content_block_delta":
            return self._delta(_object(event, "delta"))
        if kind == "content_block_start":
            return self._block(_object(event, "content_block"))
        if kind == "content_block_stop":
            return self._block_end()
        if kind == "message_start":
            self._count(_object(event, "message"))
        elif kind == "message_delta":
            self._count(event)
            self._stop(_object(event, "delta"))
        elif kind == "message_stop":
            self.finished = True
        elif kind == "error":
            raise _told(event)
        return []

    def whole(self, body: Mapping[str, Any]) -> list[Part]:
        """The parts of a body. Raises BrokenAnswerError."""
        if body.get("type") == "error":
            raise _told(body)
        self._count(body)
        parts: list[Part] = []
        for block in _list(body, "content"):
            parts += self._block(block) + self._block_end()
        self._stop(body)
        if self.finish is None:
            raise BrokenAnswerError("The answer has no stop_reason.")
        self.finished = True
        return parts

    def _block(self, block: Mapping[str, Any]) -> list[Part]:
        kind = block.get("type")
        if kind == "text":
            return _piece("content", _text(block, "text"))
        if kind == "thinking":
            return _piece("reasoning", _text(block, "thinking"))
        if kind == "redacted_thinking":
            return []  # nothing in it can be read
        if kind != "tool_use":
            raise BrokenAnswerError(
                f"The answer holds a block of type {kind!r}, which is not understood here."
            )
        self._call += 1
        self._in_call = True
        self._input = block.get("input")
        return [Part("name", _text(block, "name"), self._call)]

    def _delta(self, delta: Mapping[str, Any]) -> list[Part]:
        kind = delta.get("type")
        if kind == "text_delta":
            return _piece("content", _text(delta, "text"))
        if kind == "thinking_delta":
            return _piece("reasoning", _text(delta, "thinking"))
        if kind == "input_json_delta":
            piece = _text(delta, "partial_json")
            if not self._in_call:
                raise BrokenAnswerError("An input_json_delta came outside a tool_use block.")
            if piece:
                self._input = None
                return [Part("arguments", piece, self._call)]
        return []

    def _block_end(self) -> list[Part]:
        """A call without deltas has its arguments in its block: streams leave them out where there are none."""
        given, in_call = self._input, self._in_call
        self._input, self._in_call = None, False
        if not in_call or given is None:
            return []
        return [Part("arguments", orjson.dumps(given).decode(), self._call)]

    def _count(self, of: Mapping[str, Any]) -> None:
        """Counts are totals: later ones replace earlier ones."""
        usage = of.get("usage")
        if isinstance(usage, dict):
            told = {name: count_of(count) for name, count in usage.items()}
            self._counts |= {name: count for name, count in told.items() if count is not None}

    def _stop(self, delta: Mapping[str, Any]) -> None:
        reason = delta.get("stop_reason")
        if reason is None:
            return
        if reason not in _REASONS:
            raise BrokenAnswerError(
                f"The answer ended with stop_reason {reason!r}, which is not understood here."
            )
        self.finish = Finish(_REASONS[reason], delta.get("stop_sequence"))


def _piece(kind: Any, text: str) -> list[Part]:
    return [Part(kind, text)] if text else []


def _told(event: Mapping[str, Any]) -> BrokenAnswerError:
    error = _object(event, "error")
    kind = error.get("type")
    return BrokenAnswerError(f"{kind}: {error.get('message')}", kind=kind if isinstance(kind, str) else None)


def _object(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = of.get(name)
    if not isinstance(value, dict):
        raise BrokenAnswerError(f"An event of type {of.get('type')!r} has no object {name!r}.")
    return value


def _list(of: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = of.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BrokenAnswerError(f"The answer has no list {name!r}.")
    return value


def _text(of: Mapping[str, Any], name: str) -> str:
    value = of.get(name)
    if not isinstance(value, str):
        raise BrokenAnswerError(f"A piece of type {of.get('type')!r} has no text {name!r}.")
    return value
