"""Examples as texts to learn from and texts held out: each once, and what is alike on one side.

Knows neither files, caches nor engines: whoever has examples hands them in.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from ...errors import CompressError
from ...models.tokenizer import Tokenizer
from ..texts import Example, Tokens, tokenize

_WORD = re.compile(r"\w+")
_DIGITS = re.compile(r"\d+")
# Of a text without a prompt: what it begins with stands for it.
_BEGINNING = 200
# So much more than its share may be held out, before prompts that are nearly the same are taken apart.
MOST_TIMES = 3


@dataclass(frozen=True, slots=True)
class Dataset:
    """Attributes:
    held_out: never trained on, at least two.
    examples: how many were read; duplicates: how many had the ids of another; unusable: how many had nothing to learn
        within the tokens that are taken of each.
    """

    train: list[Tokens]
    held_out: list[Tokens]
    examples: int
    duplicates: int
    unusable: int


def make_dataset(
    tokenizer: Tokenizer, examples: Iterable[Example], *, max_tokens: int, held_out_share: float
) -> Dataset:
    """Raises CompressError where there is too little to train on and to hold out."""
    seen: set[bytes] = set()
    texts: list[tuple[str, Tokens]] = []  # each behind its prompt
    read = unusable = 0
    for example in examples:
        read += 1
        found = tokenize(tokenizer, [example], max_tokens) if example.is_answered else []
        if not found:
            unusable += 1
            continue
        digest = xxhash.xxh3_128_digest(_bytes(found[0]))
        if digest not in seen:
            seen.add(digest)
            texts.append((prompt_of(example), found[0]))
    if not texts:
        raise CompressError(
            f"None of the {read} examples has anything to learn within its first {max_tokens} tokens: they hold no "
            "answers, or longer prompts. Give answered examples, or a higher --context."
        )
    train, held_out = _split(
        [(_hash(text.topic or gist(prompt)), text) for prompt, text in texts], held_out_share
    )
    if len(held_out) > max(2, MOST_TIMES * held_out_share * len(texts)):
        # Prompts that all say the same in other numbers, sums for one: then each is one by itself.
        train, held_out = _split(
            [(_hash(text.topic or prompt), text) for prompt, text in texts], held_out_share
        )
    if not train or not held_out:
        raise CompressError(
            f"{len(texts)} different texts, with {len({text.topic or prompt for prompt, text in texts})} different prompts "
            "or topics, are too few to train on some and hold out others; give hundreds."
        )
    return Dataset(train, held_out, read, read - unusable - len(texts), unusable)


def prompt_of(example: Example) -> str:
    """What decides on which side it is: the first user message of a conversation, which all of its later turns share; a
    prompt; or how a text begins."""
    if example.messages:
        asked = [str(m.get("content")) for m in example.messages if m.get("role") == "user"]
        return asked[0] if asked else str(example.messages[0].get("content"))
    return example.prompt or example.completion[:_BEGINNING]


def gist(prompt: str) -> str:
    """The same for prompts that differ only in case, numbers, punctuation, and the order and number of words."""
    words = set(_WORD.findall(_DIGITS.sub("0", prompt.casefold())))
    return " ".join(sorted(words)) or prompt


def _split(texts: list[tuple[int, Tokens]], share: float) -> tuple[list[Tokens], list[Tokens]]:
    """What to train on and what to hold out: the texts whose hash of 64 bits is in the lowest `share` of all.

    Of few texts that may be none; then as many of the lowest as hold two texts.
    """
    border = int(share * 2**64)
    if sum(place < border for place, _ in texts) < 2:
        hashes = sorted({place for place, _ in texts})
        border = next((h + 1 for h in hashes if sum(place <= h for place, _ in texts) >= 2), 0)
    return [t for place, t in texts if place >= border], [t for place, t in texts if place < border]


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _bytes(text: Tokens) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in text.ids) + bytes(text.learn) + b"\xff"
