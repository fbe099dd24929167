"""Streams for `trust_stream.py`, read from files or written by script, and pairs for `trust_adversarial.py`.

A stream is a list of (text, answer id) in order; a pair, two questions that one answer serves or does not.
Written streams repeat popular requests in other words (Zipf) among adversarial near misses: the same words about another
thing, another action on the same thing, and words swapped for their opposites.
"""

import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

Request = tuple[str, str]
HAND_WRITTEN = Path(__file__).with_name("trust_pairs.jsonl")


class Pair(msgspec.Struct, frozen=True):
    """`same`: whether one answer serves both questions. `category`: in what they differ."""

    query: str
    neighbour: str
    same: bool
    category: str = "other"


_ASK = (
    "{d}",
    "how do I {d}?",
    "how to {d}",
    "How can I {d}",
    "I want to {d}",
    "i need to {d}, please help",
    "What is the command to {d}?",
    "command that will {d}",
    "Please tell me how to {d}.",
    "is there a way to {d}?",
    "best way to {d}",
    "could you show me how to {d}",
)
_ASK_TOOL = (
    "{d} with {tool}",
    "how do I {d} using {tool}?",
    "{tool}: {d}",
    "use {tool} to {d}",
    "What is the {tool} command to {d}?",
    "{tool} {d}",
    "in {tool}, how can I {d}?",
    "show me how to {d} with {tool}",
)
_SYNONYMS = (
    ("directory", "folder"),
    ("display", "show"),
    ("print", "show"),
    ("delete", "remove"),
    ("create", "make"),
    ("specific", "given"),
    ("execute", "run"),
    ("list", "show"),
    ("start", "launch"),
    ("update", "refresh"),
    ("current", "present"),
    ("a specific", "some"),
    ("repository", "repo"),
    ("multiple", "several"),
)
_OPPOSITES = (
    ("enable", "disable"),
    ("start", "stop"),
    ("install", "uninstall"),
    ("first", "last"),
    ("all", "one of the"),
    ("before", "after"),
    ("local", "remote"),
    ("encrypt", "decrypt"),
    ("compress", "decompress"),
    ("add", "remove"),
    ("show", "hide"),
    ("lock", "unlock"),
    ("include", "exclude"),
    ("from", "to"),
    ("oldest", "newest"),
    ("without", "with"),
)


def read_pairs(file: Path) -> list[Pair]:
    """A pair a line, as JSON."""
    return [msgspec.json.decode(line, type=Pair) for line in file.read_bytes().splitlines()]


def read_folder(folder: Path) -> Iterator[tuple[str, list[Request]]]:
    """Every `*.jsonl` in it: one stream each, one {"text": ..., "answer_id": ...} a line, in the order of arrival."""
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        yield file.stem, [(row["text"], str(row["answer_id"])) for row in rows]


def commands(examples: Path, requests: int, seed: int = 0) -> list[Request]:
    """From descriptions of commands (JSONL, perhaps gzipped: `tool`, `desc`, `cmd`, `head`): same command, same answer."""
    generator = random.Random(seed)
    with (
        gzip.open(examples, "rt", encoding="utf-8") if examples.suffix == ".gz" else examples.open() as lines
    ):
        rows = [json.loads(line) for line in lines]
    pages: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if 15 <= len(row["desc"]) <= 120:
            pages[row["tool"]].append(row)
    tools = sorted(pages)
    generator.shuffle(tools)
    # Popular tools first: `head` is 3 for the commonest.
    tools = sorted(tools, key=lambda tool: -int(pages[tool][0]["head"]))[:400]
    topics = []
    for tool in tools:
        found = pages[tool]
        generator.shuffle(found)
        topics += [
            (tool, row["desc"][0].lower() + row["desc"][1:].rstrip("."), row["cmd"]) for row in found[:8]
        ]
    generator.shuffle(topics)
    alone, named = defaultdict(set), defaultdict(set)
    for tool, description, command in topics:
        alone[description.lower()].add(command)
        named[tool, description.lower()].add(command)
    topics = [topic for topic in topics if len(named[topic[0], topic[1].lower()]) == 1]
    return list(
        _in_other_words(
            [(tool, d, command, len(alone[d.lower()]) == 1) for tool, d, command in topics],
            requests,
            generator,
        )
    )


def support(requests: int, seed: int = 0) -> list[Request]:
    """Of our own, for when there is no data: what customers ask a shop about."""
    generator = random.Random(seed)
    actions = (
        "cancel,change,track,return,pay for,insure,renew,activate,share,rename,print,repeat,pause,resume,"
        "upgrade,downgrade,transfer,export"
    )
    things = (
        "order,subscription,delivery,invoice,gift card,account,phone plan,travel booking,hotel room,warranty,"
        "car rental,ticket,password,address,loyalty card,meal plan,insurance policy,parking permit,membership,"
        "magazine,data package,train seat"
    )
    topics = [
        ("the app", f"{action} my {thing}", f"{action} {thing}", True)
        for action in actions.split(",")
        for thing in things.split(",")
    ]
    generator.shuffle(topics)
    return list(_in_other_words(topics, requests, generator))


def _in_other_words(
    topics: list[tuple[str, str, str, bool]], requests: int, generator: random.Random
) -> Iterator[Request]:
    """Topics: tool, description, answer, and whether the description says enough without the tool."""
    weights = [1 / (rank + 3) for rank in range(len(topics))]
    answers: dict[str, str] = {}
    for tool, description, answer, enough in generator.choices(topics, weights, k=requests):
        words = description
        if generator.random() < 0.06:
            words = _swapped(words, _OPPOSITES, generator, both_ways=True)
            if words != description:
                answer += f" [{words}]"
        if generator.random() < 0.5:
            words = _swapped(words, _SYNONYMS, generator)
        form = generator.choice(_ASK if enough and generator.random() < 0.6 else _ASK_TOOL)
        text = form.format(d=words, tool=tool)
        text = text.lower() if generator.random() < 0.2 else text
        # A text has one answer, as a deterministic model would give it.
        yield text, answers.setdefault(text, answer)


def _swapped(
    text: str, pairs: tuple[tuple[str, str], ...], generator: random.Random, both_ways: bool = False
) -> str:
    """With one word replaced, where one of the pairs is found in it."""
    if both_ways:
        pairs = (*pairs, *((b, a) for a, b in pairs))
    found = [pair for pair in pairs if re.search(rf"\b{pair[0]}\b", text)]
    if not found:
        return text
    old, new = generator.choice(found)
    return re.sub(rf"\b{old}\b", new, text, count=1)
