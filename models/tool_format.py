"""How a model writes tool calls, learnt from its chat template: what it makes of an answer that calls a known function.

A template is asked for one answer of plain text, one with one call, one with two. Where they differ is what the model was
trained to write: `<tool_call>\\n{"name": "` before the name, `", "arguments": ` behind it, and so on. No model is known by
its name.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequestError

# Stands in a format where the template writes the id of the call.
CALL_ID = "\0"
# The length that Mistral's templates demand; the others take any. Letters and digits.
CALL_ID_LENGTH = 9

_ANSWER = "Zanzibar"
_NAMES = ("probe_first", "probe_second")
_IDS = ("pRobeFir1", "pRobeSec2")
_ARGUMENTS: tuple[dict[str, str], ...] = ({"probe_a": "u", "probe_b": "v"}, {"probe_a": "x", "probe_b": "y"})
_NEXT_TURNS: tuple[dict[str, object], ...] = (
    {"role": "tool", "content": "probe", "tool_call_id": _IDS[0], "name": _NAMES[0]},
    {"role": "assistant", "content": "probe"},
    {"role": "user", "content": "probe"},
)
_STYLES = ((", ", ": "), (",", ":"), (", ", ":"), (",", ": "))

Render = Callable[[list[dict[str, object]], list[dict[str, object]]], str]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The text of an answer that calls functions: `trigger opening NAME between ARGUMENTS closing`, then for every further
    call `next NAME between ARGUMENTS closing`, then `ending`. CALL_ID in them stands for an id.

    Attributes:
        trigger: what no other text contains.
        at_start: a call is told from text by its beginning alone, since the trigger is nothing but JSON.
        next: None where an answer may hold one call only.
        separators: between items, and between keys and values, of the arguments; None for any white space.
        arguments_as_text: messages to the template carry arguments as a JSON text, not as an object.
        empty_content: what messages to the template carry for no text.
    """

    trigger: str
    at_start: bool
    opening: str
    between: str
    closing: str
    next: str | None
    ending: str
    separators: tuple[str, str] | None
    arguments_as_text: bool
    empty_content: str | None

    @property
    def literals(self) -> tuple[str, ...]:
        return (self.trigger, self.opening, self.between, self.closing, self.next or "", self.ending)


def mentions_tools(template: str) -> bool:
    return re.search(r"\btools\b", template) is not None


def probed_format(render: Render, markers: Iterable[str], eos_token: str | None) -> ToolFormat | str:
    """The format, or why there is none that this server can read.

    Args:
        render: messages and tools -> text, as the template has it.
        markers: texts that are one token each, and never cut.
        eos_token: what may follow an answer.
    """
    reason = ""
    for as_text in (False, True):
        for content in (None, ""):
            try:
                return _Probe(render, list(markers), eos_token, as_text, content).format()
            except InvalidRequestError as error:
                reason = reason or error.message
            except _UnreadableError as error:
                reason = str(error)
                if not as_text and content == "":
                    return reason  # it takes objects, and a text would be copied without a look
    return reason


class _UnreadableError(Exception):
    pass


class _Probe:
    def __init__(
        self, render: Render, markers: list[str], eos_token: str | None, as_text: bool, content: str | None
    ) -> None:
        self._render = render
        self._eos_token = eos_token
        self._as_text = as_text
        self._content = content
        whole = sorted([*markers, CALL_ID], key=len, reverse=True)
        self._pieces = re.compile("|".join(map(re.escape, whole)) + "|.", re.DOTALL)

    def format(self) -> ToolFormat:
        plain = self._rendered({"content": _ANSWER})
        header, _, tail = plain.partition(_ANSWER)
        if _ANSWER not in plain:
            raise _UnreadableError("it does not write answers")
        one = self._rendered(self._calls(1))
        body = one[len(self._common(header + _ANSWER, one)) :]
        opening, between, style, rest = self._parts(body, 0)
        last = _with_holes(self._without_tail(rest, tail))
        following, ending, closing = None, "", last
        try:
            two = self._rendered(self._calls(2))
            middle = two[len(one) - len(rest) :]
            second, between_second, _, rest_of_two = self._parts(middle, 1)
            same = _with_holes(between_second) == _with_holes(between)
            if same and _with_holes(self._without_tail(rest_of_two, tail)) == last:
                second = _with_holes(second)
                closing = self._common(second, last)
                following, ending = second[len(closing) :], last[len(closing) :]
        except (InvalidRequestError, _UnreadableError):
            pass  # many templates refuse answers with more than one call
        self._rendered(self._calls(1), *_NEXT_TURNS)  # must be possible too
        opening = _with_holes(opening.lstrip())
        if self._content is None and "None" in opening:
            raise _UnreadableError("it writes 'None' for no text")
        trigger, at_start = self._trigger(opening)
        return ToolFormat(
            trigger=trigger,
            at_start=at_start,
            opening=opening[len(trigger) :],
            between=_with_holes(between),
            closing=closing,
            next=following,
            ending=ending,
            separators=style,
            arguments_as_text=self._as_text,
            empty_content=self._content,
        )

    def _rendered(self, answer: dict[str, object], *later: dict[str, object]) -> str:
        tool = {"name": "probe", "description": "probe", "parameters": {"type": "object", "properties": {}}}
        return self._render(
            [{"role": "user", "content": "probe"}, {"role": "assistant", **answer}, *later],
            [{"type": "function", "function": tool}],
        )

    def _calls(self, count: int) -> dict[str, object]:
        calls = [
            {
                "id": _IDS[place],
                "type": "function",
                "function": {
                    "name": _NAMES[place],
                    "arguments": json.dumps(_ARGUMENTS[place]) if self._as_text else _ARGUMENTS[place],
                },
            }
            for place in range(count)
        ]
        return {"content": self._content, "tool_calls": calls}

    def _parts(self, text: str, place: int) -> tuple[str, str, tuple[str, str] | None, str]:
        """What is before a call's name, between it and its arguments, the arguments' style, and what is behind them."""
        before, found, behind = text.partition(_NAMES[place])
        if not found:
            raise _UnreadableError("it does not write the names of called functions")
        at = behind.find('"probe_a"')
        start = behind.rfind("{", 0, at)
        try:
            arguments, end = json.JSONDecoder().raw_decode(behind, start)
        except ValueError:
            arguments, end = None, 0
        if at < 0 or start < 0 or arguments != _ARGUMENTS[place]:
            raise _UnreadableError(
                "it does not write the arguments of calls as a JSON object behind the name"
            )
        style = next((each for each in _STYLES if behind[start:end] == _styled(arguments, each)), None)
        return before, behind[:start], style, behind[end:]

    def _without_tail(self, rest: str, tail: str) -> str:
        """What the model writes of the end of an answer: all but what ends it in any case."""
        rest, tail = rest.rstrip(), tail.rstrip()
        common = self._common_end(rest, tail)
        if common == tail.lstrip() or any(len(piece) > 1 for piece in self._pieces.findall(common)):
            return rest[: len(rest) - len(common)].rstrip()
        if self._eos_token and self._eos_token in rest:
            return rest[: rest.index(self._eos_token)]
        raise _UnreadableError(f"it ends calls with {rest!r}, and other answers with {tail!r}")

    def _trigger(self, opening: str) -> tuple[str, bool]:
        first = self._pieces.match(opening)
        if first is None:
            raise _UnreadableError("it writes nothing before the name of a called function")
        if len(first[0]) > 1:
            return first[0], False
        words = opening[: opening.find("{")].rstrip() if "{" in opening else opening
        # A lone bracket would be found in any text.
        return (words, False) if re.search(r"\w", words) else (opening, True)

    def _common(self, one: str, other: str) -> str:
        """The longest beginning that both have, without cutting a token that is whole."""
        return "".join(_agreeing(self._pieces.findall(one), self._pieces.findall(other)))

    def _common_end(self, one: str, other: str) -> str:
        ends = _agreeing(self._pieces.findall(one)[::-1], self._pieces.findall(other)[::-1])
        return "".join(ends[::-1]).lstrip()


def _agreeing(one: list[str], other: list[str]) -> list[str]:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return [piece for piece, _ in pairs]


def _with_holes(text: str) -> str:
    for call_id in _IDS:
        text = text.replace(call_id, CALL_ID)
    return text


def _styled(value: Any, separators: tuple[str, str]) -> str:
    return json.dumps(value, separators=separators)
