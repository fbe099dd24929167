"""The examples that may be learnt from: without what is somebody's own, each question once. Reads no cache."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from ...compress.distill.dataset import prompt_of
from ...compress.texts import Example
from ..router.rows import groups_of
from .pii import Rule, matching


class Gathered(msgspec.Struct, frozen=True):
    """Attributes:
    groups: of each example; the same of questions that are nearly the same.
    read: examples that there were.
    by_rule: of how many something was found by each rule that found anything; private: that are left out for it.
    repeated: left out because they ask what another does.
    """

    examples: list[Example]
    groups: list[str]
    read: int
    private: int
    by_rule: dict[str, int]
    repeated: int


def gather(examples: Iterable[Example], rules: Mapping[str, Rule]) -> Gathered:
    """Nothing that a rule finds is shown or kept, only how often it was found."""
    read = private = 0
    by_rule = Counter[str]()
    open_to_all: list[Example] = []
    for example in examples:
        read += 1
        if found := matching(rules, _text_of(example)):
            private += 1
            by_rule.update(found)
        else:
            open_to_all.append(example)
    # By all that was asked: of conversations that begin alike, each is one by itself.
    whole = groups_of([_asked(example) for example in open_to_all])
    distinct: dict[str, Example] = {}
    for key, example in zip(whole, open_to_all, strict=True):
        distinct.setdefault(key, example)
    chosen = list(distinct.values())
    groups = groups_of([prompt_of(example) for example in chosen])
    return Gathered(chosen, groups, read, private, dict(by_rule), len(open_to_all) - len(chosen))


def _asked(example: Example) -> str:
    if not example.messages:
        return example.prompt or example.completion
    return "\n".join(_content(m.get("content")) for m in example.messages if m.get("role") == "user")


def _text_of(example: Example) -> str:
    """All of it, thoughts, names and calls too: an answer may repeat what it was told."""
    parts = [text for message in example.messages for text in _texts_in(dict(message))]
    return "\n".join([*parts, example.prompt, example.completion])


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts_in(part)


def _content(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
