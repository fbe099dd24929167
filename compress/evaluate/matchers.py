"""Whether an answer is right: to the letter, by a pattern, as a command that does the same, or as a refusal to answer."""

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from .command import same_command

_SPAN = re.compile(r"```[^\n`]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)


class Matcher(Protocol):
    def accepts(self, answer: str) -> bool: ...


def code_span(answer: str) -> str | None:
    """What stands in the first pair of backticks or the first fenced block; None without either."""
    found = _SPAN.search(answer)
    return None if found is None else (found[1] or found[2] or "").strip()


class Exact:
    """The answer, or its first code span, is one of these, but for white space."""

    def __init__(self, accepted: Sequence[str]) -> None:
        self._accepted = {_normal(text) for text in accepted}

    def accepts(self, answer: str) -> bool:
        return any(_normal(text) in self._accepted for text in _readings(answer))


class Pattern:
    """One of these regular expressions matches the whole of the answer, or of its first code span.

    Raises re.error for a pattern that is none.
    """

    def __init__(self, accepted: Sequence[str]) -> None:
        self._accepted = [re.compile(pattern) for pattern in accepted]

    def accepts(self, answer: str) -> bool:
        readings = _readings(answer)
        return any(pattern.fullmatch(text) for pattern in self._accepted for text in readings)


class Command:
    """The first code span, or the answer without one, is a command that does the same as one of these."""

    def __init__(self, accepted: Sequence[str]) -> None:
        self._accepted = list(accepted)

    def accepts(self, answer: str) -> bool:
        span = code_span(answer)
        given = answer.strip() if span is None else span
        return any(same_command(given, wanted) for wanted in self._accepted)


class Refusal:
    """One of these regular expressions is found somewhere in an answer that has no code span.

    Raises re.error for a pattern that is none.
    """

    def __init__(self, accepted: Sequence[str]) -> None:
        self._accepted = [re.compile(pattern) for pattern in accepted]

    def accepts(self, answer: str) -> bool:
        return code_span(answer) is None and any(pattern.search(answer) for pattern in self._accepted)


MATCHERS: dict[str, Callable[[Sequence[str]], Matcher]] = {
    "exact": Exact,
    "regex": Pattern,
    "command": Command,
    "refusal": Refusal,
}


def _readings(answer: str) -> list[str]:
    span = code_span(answer)
    return [answer.strip()] if span is None else [answer.strip(), span]


def _normal(text: str) -> str:
    return " ".join(text.split())
