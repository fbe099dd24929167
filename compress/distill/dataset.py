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

    @property
    def fingerprint(self) -> str:
        """Hex digest of all ids, and of what is learnt of them."""
        digest = xxhash.xxh3_128()
        for text in (*self.train, Tokens([], []), *self.held_out):
            digest.update(_bytes(text))
        return digest.hexdigest()


def make_dataset(
    tokenizer: Tokenizer, examples: Iterable[Example], *, max_tokens: int, held_out_share: float
) -> Dataset:
    """Raises CompressError where there is too little to train on and to hold out."""
    seen: set[bytes] = set()
    texts: list[tuple[int, Tokens]] = []
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
            texts.append((prompt_hash(example), found[0]))
    if not texts:
        raise CompressError(
            f"None of the {read} examples has anything to learn within its first {max_tokens} tokens: they hold no "
            "answers, or longer prompts. Give answered examples, or a higher --max-tokens."
        )
    border = int(held_out_share * 2**64)
    hashes = sorted({place for place, _ in texts})
    # Of few texts the share may be none: then the prompts that hash lowest, so many that there are two texts.
    if sum(place < border for place, _ in texts) < 2:
        border = next((h + 1 for h in hashes if sum(place <= h for place, _ in texts) >= 2), 0)
    train = [text for place, text in texts if place >= border]
    held_out = [text for place, text in texts if place < border]
    if not train or not held_out:
        raise CompressError(
            f"{len(texts)} different texts with {len(hashes)} different prompts are too few to train on some and hold "
            "out others; give hundreds."
        )
    return Dataset(train, held_out, read, read - unusable - len(texts), unusable)


def prompt_hash(example: Example) -> int:
    """Of 64 bits; the same for prompts that differ only in case, numbers, punctuation, and the order and number of words.

    A conversation goes by its first user message, which all of its later turns share.
    """
    prompt = example.prompt or example.completion[:_BEGINNING]
    if example.messages:
        asked = [str(m.get("content")) for m in example.messages if m.get("role") == "user"]
        prompt = asked[0] if asked else str(example.messages[0].get("content"))
    words = set(_WORD.findall(_DIGITS.sub("0", prompt.casefold())))
    return xxhash.xxh3_64_intdigest((" ".join(sorted(words)) or prompt).encode())


def _bytes(text: Tokens) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in text.ids) + bytes(text.learn) + b"\xff"
