"""Hand-written newcomer tasks: reads `newcomer/*.txt`, turns a task into a new question and answer each time.

A task is a block of lines; blocks are separated by an empty line, lines starting with `#` are comments:

    $ tar -xzf {tgz}                       the command
    > Extracts {tgz} into this folder.     what it does
    - extract a tar.gz archive             an imperative phrase; it is asked for in many wordings
    - unpack {tgz}
    ? what do I do with a .tgz file?       a question used as it is
    + and how do I see what is in it?      a question that only makes sense after the block before it

`{name}` is a slot: a random file, port, host ... each time, so that the model learns to copy what it was
given. A slot the question does not name takes its first, plain value. A block without `$` is answered by its
`>` line alone; one without `>` takes the sentence of another block with the same command.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .chat import Conversation, Pair
from .phrasing import ask, roughen, swap_words
from .unseen import may_be_learnt

_SLOTS: dict[str, list[str]] = json.loads((Path(__file__).parent / "newcomer" / "slots.json").read_text())
_RANGES = {
    "n": (10, 2, 50),
    "m": (5, 2, 30),
    "port": (8080, 1024, 65535),
    "pid": (1234, 100, 65000),
    "size": (100, 10, 900),
    "days": (7, 2, 90),
    "secs": (5, 2, 60),
}  # the plain value, and the range of random ones
_PORTS = ("8080", "3000", "80", "5432", "22", "443", "8000", "5000", "3306")
_FREE_NAMES = (
    "word",
    "word2",
    "branch",
    "session",
    "container",
    "host",
    "pkg",
    "apt",
    "proc",
    "db",
    "table",
    "task",
    "group",
    "var",
)
_ARCHIVES = {"tgz": "tar.gz", "tar": "tar", "zip": "zip", "gz": "gz", "bz2": "tar.bz2", "xz": "tar.xz"}
_WORD_LIST = (
    "notes report data main photo config server app test index backup users orders results thesis "
    "budget music draft log todo invoice summary output input sales letter readme project website "
    "script recipe diary archive essay slides movie song "
)
_WORDS = _WORD_LIST.split()
_NAME_LIST = "alice bob carol dave eve maria john anna tom lisa peter sara deploy admin guest mike"
_NAMES = _NAME_LIST.split()
_EXTENSIONS = ("txt", "md", "csv", "log", "py", "json", "html", "pdf", "jpg", "sh", "conf", "docx")


@dataclass(frozen=True, slots=True)
class Task:
    """One block of a newcomer file. `followups` are questions asked after `previous`, the task before it."""

    answer: str
    phrases: tuple[str, ...]
    questions: tuple[str, ...]
    followups: tuple[str, ...]
    previous: "Task | None"

    def sample(self, rng: random.Random, vocabulary: Sequence[str]) -> Conversation:
        """A new conversation about this task, which comes last; names may come from `vocabulary`."""
        values = _draw(rng, vocabulary)
        if self.previous and self.previous.is_asked and self.followups and rng.random() < 0.4:
            first, answer = _fill(rng, self.previous._question(rng, False), self.previous.answer, values)
            question, second = _fill(rng, rng.choice(self.followups), self.answer, values, mentioned=first)
            return Conversation((Pair(first, answer), Pair(roughen(rng, question), second)))
        question, answer = _fill(rng, self._question(rng, True), self.answer, values)
        return Conversation((Pair(question, answer),))

    @property
    def is_asked(self) -> bool:
        """Whether there is a wording that stands for itself."""
        return bool(self.phrases or self.questions)

    def _question(self, rng: random.Random, rough: bool) -> str:
        pool = len(self.phrases) + len(self.questions)
        i = rng.randrange(pool)
        if i < len(self.phrases):
            return ask(rng, self.phrases[i])
        question = self.questions[i - len(self.phrases)]
        if rng.random() < 0.4 and "`" not in question:
            question = swap_words(rng, question)
        return roughen(rng, question) if rough and "{" not in question else question


def weight(task: Task) -> float:
    """How often to draw a task: more for many wordings (less than in proportion), and more for plain talk."""
    wordings = float((len(task.phrases) + len(task.questions)) ** 0.8)  # none for a task that is not asked
    return wordings if task.answer.startswith("`") else 1.5 * wordings


def read_tasks(folder: Path) -> list[Task]:
    """All tasks of `folder`/*.txt, without the wordings that models are judged by.

    Raises ValueError naming the file and block that is malformed.
    """
    blocks = [_read_block(path, block) for path in sorted(folder.glob("*.txt")) for block in _blocks(path)]
    known = {b["$"][0]: _answer(b) for b in reversed(blocks) if b["$"] and b[">"]}
    tasks: list[Task] = []
    for block in blocks:
        if not block[">"] and (not block["$"] or block["$"][0] not in known):
            raise ValueError(f"newcomer task {block} has no '>' line, and no other task explains its command")
        answer = _answer(block) if block[">"] else known[block["$"][0]]
        previous = tasks[-1] if tasks else None
        phrases, questions, followups = (tuple(filter(may_be_learnt, block[sign])) for sign in "-?+")
        tasks.append(Task(answer, phrases, questions, followups, previous))
    return tasks


def plain_answer(task: Task) -> str:
    """The answer with every slot at its plain value: what a question that names nothing gets."""
    return re.sub(r"{(\w+)}", _plain, task.answer)


def _plain(match: re.Match[str]) -> str:
    name = match[1]
    if name in _RANGES:
        return str(_RANGES[name][0])
    return _SLOTS[name][0] if name in _SLOTS else match[0]


def _blocks(path: Path) -> list[str]:
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    return re.split(r"\n\s*\n", text.strip())


def _read_block(path: Path, block: str) -> dict[str, list[str]]:
    """The lines of a block by their first character."""
    lines: dict[str, list[str]] = {"$": [], ">": [], "-": [], "?": [], "+": []}
    for line in block.splitlines():
        if line[:2] not in ("$ ", "> ", "- ", "? ", "+ "):
            raise ValueError(f"{path.name}: line {line!r} must start with '$ ', '> ', '- ', '? ' or '+ '")
        lines[line[0]].append(line[2:].strip())
    if not (lines["-"] or lines["?"]):
        raise ValueError(f"{path.name}: block {block[:60]!r} asks nothing; give it a '-' or '?' line")
    return lines


def _answer(block: dict[str, list[str]]) -> str:
    text = " ".join(block[">"])
    return f"`{block['$'][0]}`\n\n{text}" if block["$"] else text


def _draw(rng: random.Random, vocabulary: Sequence[str]) -> dict[str, str]:
    """A random value for every slot."""
    values = {name: rng.choice(options) for name, options in _SLOTS.items()}
    for name, (_, low, high) in _RANGES.items():
        values[name] = str(rng.randint(low, high))
    values["port"] = rng.choice((*_PORTS, values["port"]))
    names = [any_name(rng, vocabulary) for _ in range(6)]
    values["file"] = f"{names[0]}.{rng.choice(_EXTENSIONS)}"
    values["file2"] = f"{names[1]}.{rng.choice(_EXTENSIONS)}"
    values["text"] = f"{names[0]}.{rng.choice(('txt', 'md', 'log', 'csv', 'conf'))}"
    values["dir"], values["dir2"] = names[2], names[3]
    for name, ending in _ARCHIVES.items():
        values[name] = f"{names[4]}.{ending}"
    values["user"] = rng.choice(_NAMES) if rng.random() < 0.5 else names[5]
    for name in _FREE_NAMES:
        if rng.random() < 0.5:
            values[name] = any_name(rng, vocabulary)
    return values


def any_name(rng: random.Random, vocabulary: Sequence[str]) -> str:
    """A word people name things with, any word, or one made up: what can't be guessed has to be copied."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(_WORDS)
    if kind < 0.75 and vocabulary:
        return rng.choice(vocabulary)
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))


def _fill(
    rng: random.Random, question: str, answer: str, values: dict[str, str], mentioned: str = ""
) -> tuple[str, str]:
    """Both texts with their slots filled; what neither the question nor the turn before names stays plain."""
    used = set(re.findall(r"{(\w+)}", question))

    def plain(match: re.Match[str]) -> str:
        name = match[1]
        if name in used or (mentioned and values.get(name, "\0") in mentioned):
            return values[name]
        return _plain(match)

    def named(match: re.Match[str]) -> str:
        return values.get(match[1], match[0])

    return re.sub(r"{(\w+)}", named, question), re.sub(r"{(\w+)}", plain, answer)
