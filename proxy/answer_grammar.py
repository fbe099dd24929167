"""The grammar of a whole answer: thoughts, then text or calls, each written as the model's chat template writes it.

A Lark grammar in llguidance's dialect. Functions' arguments and the caller's own grammar are parts of it. In free text
nothing that opens a call or a thought may stand, so that the reader of the answer (`answer.py`) is never mistaken about
where it is.
"""

import json
import re
from collections.abc import Mapping

from ..models.thinking import Thinking
from ..models.tool_format import CALL_ID, CALL_ID_LENGTH
from ..scheduler.grammar import Grammar
from .tools import Tools

_ANY = "/(?s:.*)/"
# What models write between their thoughts and what follows.
_GAP = r"[ \t\r\n]{0,8}"
_ANY_GAP = r"[ \t\r\n]*"


def answer_grammar(
    own: Grammar | None,
    *,
    tools: Tools | None,
    thinking: Thinking | None,
    opened: bool,
    markers: Mapping[str, int],
) -> Grammar | None:
    """None where anything may be written.

    Args:
        own: what the caller wants text to obey.
        tools: of the request.
        thinking: how thoughts are marked, None where none may come.
        opened: the prompt has opened them.
        markers: texts that are tokens, with their ids.
    """
    if own is None and tools is None:
        return None
    if own is not None and thinking is None and (tools is None or tools.mode == "none"):
        return own
    lark = _Lark(markers)
    unopened = None if opened or thinking is None else thinking.open
    if own is None and tools is not None and tools.mode != "required":
        body, gap = lark.text(tools, unopened), ""
    else:
        # Free text takes white space itself, and as the longest match would take it first.
        gap = _GAP
        options = [] if own is None or (tools is not None and tools.mode == "required") else [lark.part(own)]
        if tools is not None and tools.mode != "none":
            options.append(lark.calls(tools))
        body = f"({' | '.join(options)})"
    before = "" if thinking is None else lark.thoughts(thinking, opened, gap)
    return lark.grammar(f"{before} {body}", own.field if own is not None and tools is None else "tools")


class _Lark:
    """Rules as they are needed."""

    def __init__(self, markers: Mapping[str, int]) -> None:
        self._markers = markers
        self._split = re.compile("|".join(map(re.escape, sorted([*markers, CALL_ID], key=len, reverse=True))))
        self._rules: list[str] = []
        self._parts: list[Grammar] = []

    def grammar(self, start: str, param: str) -> Grammar:
        source = "\n".join([f"start: {start}", *self._rules])
        return Grammar("lark", source, param=param, parts=tuple(self._parts))

    def part(self, grammar: Grammar) -> str:
        if grammar not in self._parts:
            self._parts.append(grammar)
        return f"@part{self._parts.index(grammar)}"

    def thoughts(self, thinking: Thinking, opened: bool, gap: str) -> str:
        opening = "" if opened else self._literal(thinking.open)
        self._rules.append(f"thoughts: {opening} thought {f'/{gap}/' if gap else ''}")
        self._span("thought", "THOUGHT", thinking.close)
        return "thoughts" if opened else "thoughts?"

    def calls(self, tools: Tools) -> str:
        """The trigger and all behind it."""
        return f"{self._literal(tools.format.trigger)} {self._behind_trigger(tools)}"

    def text(self, tools: Tools, unopened: str | None) -> str:
        """Text, and calls at its end where they may be."""
        form = tools.format
        trigger = _regex(form.trigger)
        without = f"{_ANY_GAP}{trigger}" if form.at_start else f"(?s:.*){trigger}"
        # Where a thought may open in plain text, no other lexeme may go on through its marker.
        outside = _ANY if unopened is None else f"{_ANY} & ~/(?s:.*){_regex(unopened)}(?s:.*)/"
        self._rules.append(f"TEXT: {outside} & ~/{without}(?s:.*)/")
        if tools.mode == "none":
            return "TEXT"
        if form.at_start:
            return f"(TEXT | /{_GAP}{trigger}/ {self._behind_trigger(tools)})"
        if form.trigger in self._markers:
            return f"TEXT ({self._literal(form.trigger)} {self._behind_trigger(tools)})?"
        # The lexer takes the longest match: only a lexeme of its own may end in a trigger that is plain text.
        self._rules += [f"BEFORE: {outside}", f"before[lazy]: BEFORE {self._literal(form.trigger)}"]
        return f"(TEXT | before {self._behind_trigger(tools)})"

    def _span(self, rule: str, terminal: str, end: str) -> None:
        """Anything up to the first `end`, and it."""
        if end in self._markers:
            self._rules.append(f"{terminal}: {_ANY} & ~/(?s:.*){_regex(end)}(?s:.*)/")
            self._rules.append(f"{rule}: {terminal} {self._literal(end)}")
        else:
            self._rules.append(f"{rule}[lazy]: {_ANY} {self._literal(end)}")

    def _behind_trigger(self, tools: Tools) -> str:
        form = tools.format
        each = [
            f"{self._literal(function.name + form.between)} {self.part(function.arguments)}"
            for function in tools.callable
        ]
        self._rules.append(f"call: ({' | '.join(each)}) {self._literal(form.closing)}")
        more = ""
        if form.next is not None and tools.parallel:
            self._rules.append(f"more: {self._literal(form.next)} call")
            more = "more*"
        return f"{self._literal(form.opening)} call {more} {self._literal(form.ending)}"

    def _literal(self, text: str) -> str:
        """A text, with those of its tokens that grammars know as tokens only, and ids of calls."""
        items, at = [], 0
        for found in self._split.finditer(text):
            items += [json.dumps(text[at : found.start()])] if found.start() > at else []
            marker = self._markers.get(found[0])
            items.append(f"/[a-zA-Z0-9]{{{CALL_ID_LENGTH}}}/" if marker is None else f"<[{marker}]>")
            at = found.end()
        return " ".join([*items, json.dumps(text[at:])] if text[at:] else items)


def _regex(text: str) -> str:
    """Matches the text and nothing else."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):X}}}" for char in text)
