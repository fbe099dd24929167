"""Facts hidden in long texts: what a model must find again when it is asked for one.

A fact is a line "# key value" of tokens that mean nothing together, so that its value can only be had by looking back.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

KEY_TOKENS = 2
VALUE_TOKENS = 2
# Keys and values are drawn from these token ids: short, common pieces of words in tokenizers trained by merging pairs.
WORDS = (512, 768)


@dataclass(frozen=True, slots=True)
class Fact:
    key: list[int]
    value: list[int]


@dataclass(frozen=True, slots=True)
class Needle:
    """A text in which one fact among others stands somewhere, the question for it, and its value; all as token ids."""

    text: list[int]
    question: list[int]
    value: list[int]


class FactWriter:
    """Writes facts as token ids of one tokenizer.

    Args:
        encode: text to token ids, without special tokens.
        vocab_size: ids below it exist; a vocabulary smaller than WORDS gives its upper half.
    """

    def __init__(self, encode: Callable[[str], list[int]], vocab_size: int) -> None:
        self.before = encode("\n# ")
        self.after = encode("\n")
        self._words = range(*WORDS) if vocab_size >= WORDS[1] else range(vocab_size // 2, vocab_size)

    def draw(self, rng: random.Random) -> Fact:
        return Fact(rng.choices(self._words, k=KEY_TOKENS), rng.choices(self._words, k=VALUE_TOKENS))

    def question(self, fact: Fact) -> list[int]:
        return [*self.before, *fact.key]

    def line(self, fact: Fact) -> list[int]:
        return [*self.question(fact), *fact.value, *self.after]


def hide(
    rng: random.Random, text: list[int], writer: FactWriter, length: int, depth: float, distractors: int
) -> Needle:
    """A needle of `length` tokens, text and question, whose fact stands at `depth` (0 the start, 1 the end) of a passage.

    `distractors` other facts stand elsewhere. Raises ValueError when `text` is too short.
    """
    fact = writer.draw(rng)
    others = [writer.draw(rng) for _ in range(distractors)]
    line, question = writer.line(fact), writer.question(fact)
    room = length - len(question) - len(line) * (1 + distractors)
    if not 0 < room < len(text):
        raise ValueError(
            f"A needle of {length} tokens with {distractors} distractors needs between {length - room} tokens in all "
            f"and a text of {room + 1}; the text has {len(text)}."
        )
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
    return Needle(ids + passage[done:], question, fact.value)
