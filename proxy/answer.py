"""What a model wrote, taken apart as it comes: thoughts, text, and tool calls.

The answer grammar (`answer_grammar.py`) has made sure that calls are written exactly as the model's chat template writes
them, so that reading them is counting characters. However the text is cut into pieces, the parts are the same.
"""

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..models.thinking import Thinking, Thoughts
from ..models.tool_format import CALL_ID, CALL_ID_LENGTH, ToolFormat

_SPACE = " \t\r\n"
_ID_LETTERS = string.ascii_letters + string.digits

Kind = Literal["reasoning", "content", "name", "arguments"]


@dataclass(frozen=True, slots=True)
class Layout:
    """What one answer may consist of.

    Attributes:
        thinking: how thoughts are marked; None for a model that marks none.
        thoughts: whether the answer begins inside them, may open them, or has none.
        calls: how calls are written; None where there may be none.
    """

    thinking: Thinking | None = None
    thoughts: Thoughts = "closed"
    calls: ToolFormat | None = None

    def begun_in(self, prompt: str) -> str:
        """What stands at the prompt's end of the answer already: what opens its thoughts."""
        if self.thinking is None or self.thoughts != "open":
            return ""
        return prompt[prompt.rindex(self.thinking.open) :]

    @property
    def is_plain(self) -> bool:
        """Nothing but text."""
        return self.calls is None and self.thoughts == "closed"

    @property
    def literals(self) -> tuple[str, ...]:
        """The texts that the parts are told apart by."""
        texts: tuple[str, ...] = () if self.calls is None else self.calls.literals
        if self.thinking is not None and self.thoughts != "closed":
            texts += (self.thinking.open, self.thinking.close)
        return texts


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one part of an answer; `call` counts the answer's calls, and a call begins with its name."""

    kind: Kind
    text: str
    call: int = 0


class AnswerReader:
    """Reads one answer."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._held = ""
        self._found: list[Part] = []
        self._call = -1
        self._in_call = False
        self._depth = 0
        self._in_string = self._escaped = False
        # The beginning of the next piece of text is white space that belongs to the markup before it.
        self._trims = layout.thoughts == "open"
        self._wrote_text = False
        self._state: Callable[[], bool] = {
            "open": self._thoughts,
            "free": self._beginning,
            "closed": self._text,
        }[layout.thoughts]

    def reason(self, finish_reason: str | None) -> str | None:
        """OpenAI's finish_reason for the engine's: "tool_calls" where the answer ended with whole calls."""
        ends_with_calls = self._call >= 0 and not self._in_call
        return "tool_calls" if finish_reason == "stop" and ends_with_calls else finish_reason

    def read(self, text: str) -> list[Part]:
        """The parts that are certain now."""
        self._held += text
        while self._held and self._state():
            pass
        return self._taken()

    def end(self) -> list[Part]:
        """The rest, when no more will come."""
        if self._state == self._thoughts:
            self._emit("reasoning", self._held.rstrip())
        elif self._state in (self._beginning, self._text):
            self._emit("content", self._held)
        self._held = ""
        return self._taken()

    def _taken(self) -> list[Part]:
        found, self._found = self._found, []
        return found

    # Each state takes what it can of the held text; True when the next one may go on with the rest.

    def _beginning(self) -> bool:
        assert self._layout.thinking is not None
        text = self._held.lstrip(_SPACE)
        opening = self._layout.thinking.open
        if text.startswith(opening):
            self._held = text[len(opening) :]
            self._trims = True
            self._state = self._thoughts
            return True
        if not opening.startswith(text):
            self._state = self._text
            return True
        return False

    def _thoughts(self) -> bool:
        assert self._layout.thinking is not None
        close = self._layout.thinking.close
        thought, found, rest = self._held.partition(close)
        if found:
            self._emit("reasoning", thought.rstrip(_SPACE))
            self._held, self._trims, self._state = rest, True, self._text
            return True
        self._emit_certain("reasoning", close)
        return False

    def _text(self) -> bool:
        form = self._layout.calls
        if form is None:
            self._emit("content", self._held)
            self._held = ""
            return False
        if form.at_start:
            return self._call_or_text(form)
        text, found, rest = self._held.partition(form.trigger)
        if found:
            self._emit("content", text.rstrip(_SPACE))
            self._held, self._state = rest, self._opening
            return True
        self._emit_certain("content", form.trigger)
        return False

    def _call_or_text(self, form: ToolFormat) -> bool:
        text = self._held.lstrip(_SPACE)
        if not self._wrote_text and text.startswith(form.trigger):
            self._held, self._state = text[len(form.trigger) :], self._opening
            return True
        if self._wrote_text or not form.trigger.startswith(text):
            self._emit("content", self._held)
            self._held = ""
        return False

    def _opening(self) -> bool:
        assert self._layout.calls is not None
        return self._skip(self._layout.calls.opening, self._name)

    def _name(self) -> bool:
        assert self._layout.calls is not None
        between = self._layout.calls.between
        name, found, _ = self._held.partition(between.partition(CALL_ID)[0])
        if not found:
            return False
        self._call += 1
        self._in_call = True
        self._emit("name", name)
        self._held, self._state = self._held[len(name) :], self._between
        return True

    def _between(self) -> bool:
        assert self._layout.calls is not None
        return self._skip(self._layout.calls.between, self._arguments)

    def _arguments(self) -> bool:
        for place, char in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    self._emit("arguments", self._held[: place + 1])
                    self._held, self._state = self._held[place + 1 :], self._closing
                    self._in_call = False
                    return True
        self._emit("arguments", self._held)
        self._held = ""
        return False

    def _closing(self) -> bool:
        assert self._layout.calls is not None
        return self._skip(self._layout.calls.closing, self._after_call)

    def _after_call(self) -> bool:
        assert self._layout.calls is not None
        following = self._layout.calls.next
        if following is None or not self._held.startswith(following.partition(CALL_ID)[0]):
            return False  # the ending, or a beginning of either
        return self._skip(following, self._name)

    def _skip(self, literal: str, then: Callable[[], bool]) -> bool:
        length = len(literal) + literal.count(CALL_ID) * (CALL_ID_LENGTH - 1)
        if len(self._held) < length:
            return False
        self._held, self._state = self._held[length:], then
        return True

    def _emit_certain(self, kind: Kind, marker: str) -> None:
        """All of the held text but what may belong to a marker: its beginning, and white space before it."""
        text = self._held
        safe = len(text)
        for length in range(min(len(marker) - 1, len(text)), 0, -1):
            if marker.startswith(text[-length:]):
                safe -= length
                break
        safe = len(text[:safe].rstrip(_SPACE))
        self._emit(kind, text[:safe])
        self._held = text[safe:]

    def _emit(self, kind: Kind, text: str) -> None:
        if self._trims and kind in ("reasoning", "content"):
            text = text.lstrip(_SPACE)
        if not text:
            return
        self._trims = False
        self._wrote_text = self._wrote_text or kind == "content"
        last = self._found[-1] if self._found else None
        if last is not None and last.kind == kind and kind != "name":
            self._found[-1] = Part(kind, last.text + text, last.call)
        else:
            self._found.append(Part(kind, text, max(self._call, 0)))


def message_of(parts: list[Part]) -> dict[str, object]:
    """OpenAI's message of a whole answer: `content` is null where there is none beside thoughts or calls."""
    texts = {"reasoning": "", "content": ""}
    calls: list[dict[str, str]] = []
    for part in parts:
        if part.kind == "name":
            calls.append({"name": part.text, "arguments": ""})
        elif part.kind == "arguments":
            calls[part.call]["arguments"] += part.text
        else:
            texts[part.kind] += part.text
    message: dict[str, object] = {"role": "assistant", "content": texts["content"], "refusal": None}
    if not texts["content"] and (calls or texts["reasoning"]):
        message["content"] = None
    if texts["reasoning"]:
        message["reasoning_content"] = texts["reasoning"]
    if calls:
        message["tool_calls"] = [
            {"id": new_call_id(), "type": "function", "function": call} for call in calls
        ]
    return message


def new_call_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(CALL_ID_LENGTH))
