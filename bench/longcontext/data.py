"""Long token sequences in which something must be found again: Python's standard library with facts strewn in.

The text is the standard library of the interpreter that runs this: long documents that every machine has, under the
licence of Python. A fact is a line "# key value" of random tokens; it stands somewhere and is repeated later, where its
value can only be had by looking back. Modules whose names hash to the held-out share are never trained on.
"""

import hashlib
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

HELD_OUT_SHARE = 25
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "pydoc_data", "encodings"}
KEY_TOKENS = 2
VALUE_TOKENS = 2
WORDS = (512, 768)
IGNORED, TEXT, RECALLED = 0, 1, 2
"""What a token is to be predicted as: not at all (random), as text, or from an earlier fact."""


@dataclass(frozen=True, slots=True)
class Fact:
    key: list[int]
    value: list[int]


class Library:
    """The standard library's modules as token ids, split into trained and held-out ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(
            file for file in root.rglob("*.py") if not LEFT_OUT & set(file.relative_to(root).parts)
        )
        self.trained: list[int] = []
        self.held_out: list[int] = []
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            name = str(file.relative_to(root))
            part = self.held_out if _is_held_out(name) else self.trained
            part += tokenizer.encode(f"# {name}\n{text}\n", add_special_tokens=False).ids


class FactWriter:
    """Writes facts as tokens. Keys and values are drawn from the tokens WORDS."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.before = tokenizer.encode("\n# ", add_special_tokens=False).ids
        self.after = tokenizer.encode("\n", add_special_tokens=False).ids
        self._words = range(*WORDS)

    def draw(self, rng: random.Random) -> Fact:
        return Fact(rng.choices(self._words, k=KEY_TOKENS), rng.choices(self._words, k=VALUE_TOKENS))

    def question(self, fact: Fact) -> list[int]:
        return [*self.before, *fact.key]

    def line(self, fact: Fact) -> list[int]:
        return [*self.question(fact), *fact.value, *self.after]

    def roles(self, *, again: bool) -> list[int]:
        """What each token of a `line` is to be predicted as."""
        value = RECALLED if again else IGNORED
        roles = [TEXT] * len(self.before) + [IGNORED] * KEY_TOKENS
        return [*roles, *[value] * VALUE_TOKENS, *[TEXT] * len(self.after)]


def training_sequence(
    rng: random.Random, text: list[int], writer: FactWriter, length: int, gap: float
) -> tuple[list[int], list[int]]:
    """`length` token ids and their roles: a passage of `text` with a fact, or the repetition of one, every `gap` tokens."""
    facts: list[Fact] = []
    ids: list[int] = []
    roles: list[int] = []
    at = rng.randrange(len(text) - length)
    while len(ids) < length:
        run = 1 + int(rng.expovariate(1 / gap))
        ids += text[at : at + run]
        roles += [TEXT] * run
        at += run
        again = bool(facts) and rng.random() < 0.6
        if again:
            fact = rng.choice(facts)
        else:
            facts.append(fact := writer.draw(rng))
        ids += writer.line(fact)
        roles += writer.roles(again=again)
    return ids[:length], roles[:length]


def needle(
    rng: random.Random, text: list[int], writer: FactWriter, length: int, depth: float, distractors: int
) -> tuple[list[int], list[int]]:
    """A prompt of `length` tokens whose fact stands at `depth` (0 the start, 1 the end), and the value asked for at its end.

    `distractors` other facts stand elsewhere.
    """
    fact = writer.draw(rng)
    others = [writer.draw(rng) for _ in range(distractors)]
    line, question = writer.line(fact), writer.question(fact)
    room = length - len(question) - len(line) * (1 + distractors)
    start = rng.randrange(len(text) - room)
    passage = text[start : start + room]
    places = sorted(
        [(int(depth * room), line), *((rng.randrange(room), writer.line(other)) for other in others)],
        key=lambda place: place[0],
    )
    ids: list[int] = []
    done = 0
    for place, tokens in places:
        ids += passage[done:place] + tokens
        done = place
    return ids + passage[done:] + question, fact.value


def _is_held_out(name: str) -> bool:
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0
