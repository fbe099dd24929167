"""Long token sequences in which something must be found again: Python's standard library with facts strewn in.

The text is the standard library of the interpreter that runs this: long documents that every machine has, under the
licence of Python. Facts (`penstock.compress.needles`) stand somewhere and are repeated later. Modules whose names hash to
the held-out share are never trained on.
"""

import hashlib
import random
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer

from penstock.compress.needles import KEY_TOKENS, VALUE_TOKENS, Fact, FactWriter

HELD_OUT_SHARE = 25
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "pydoc_data", "encodings"}
IGNORED, TEXT, RECALLED = 0, 1, 2
"""What a token is to be predicted as: not at all (random), as text, or from an earlier fact."""


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


def roles_of_line(writer: FactWriter, *, again: bool) -> list[int]:
    """What each token of a fact's line is to be predicted as."""
    value = RECALLED if again else IGNORED
    roles = [TEXT] * len(writer.before) + [IGNORED] * KEY_TOKENS
    return [*roles, *[value] * VALUE_TOKENS, *[TEXT] * len(writer.after)]


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
        roles += roles_of_line(writer, again=again)
    return ids[:length], roles[:length]


def _is_held_out(name: str) -> bool:
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0
