"""Whether two completions are the same answer. Pure functions on texts; knows no model and no cache.

`exact`       equal texts
`normalised`  equal but for case, white space, punctuation and markdown; code is compared to the letter
`agreement`   nearly the same words, and the very same numbers, negations and code
"""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

SameAnswer = Literal["exact", "normalised", "agreement"]

# Wording may differ by a fifth; what carries the facts (below) may not differ at all.
MOST_DISTANCE = 0.2
LEAST_COSINE = 0.9
# Distances of longer answers are taken on this many tokens: 0.4 ms.
_MOST_TOKENS = 512

_CODE = re.compile(r"```\w*\n?(.*?)```|`([^`\n]+)`", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_TOKEN = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W_]+(?:['\u2019][^\W_]+)?|[-+*/=<>%$€£#&|~^!\\]")
# At the start of a line these are layout, elsewhere operators.
_LAYOUT = re.compile(r"^\s*(?:#{1,6}\s+|[-*+]\s+|\d+[.)]\s+|>\s?|(?:-{3,}|\*{3,}|={3,})\s*$)", re.MULTILINE)
_EMPHASIS = re.compile(r"\*{1,3}(?=\S)(.+?)(?<=\S)\*{1,3}|__(?=\S)(.+?)(?<=\S)__")
_NEGATION = frozenset(
    ("no", "not", "never", "none", "neither", "nor", "without", "cannot", "false", "incorrect", "unable")
)


class Agreement(msgspec.Struct, frozen=True):
    """Attributes:
    same: whether the answers count as one.
    distance: token edits over the longer answer's tokens, 0.0 to 1.0, whatever the test was.
    """

    same: bool
    distance: float


def same_answer(a: str, b: str, test: SameAnswer = "normalised", cosine: float | None = None) -> Agreement:
    """Compare two completions.

    Args:
        test: one of the three above.
        cosine: of the completions' embeddings where somebody has them; `agreement` then wants 0.9 of it, too.
    """
    if a == b:
        return Agreement(True, 0.0)
    tokens, others = normalised(a), normalised(b)
    distance = 0.0 if tokens == others else token_distance(tokens, others)
    if test == "exact" or _code(a) != _code(b):
        return Agreement(False, distance)
    if test == "normalised" or tokens == others:
        return Agreement(tokens == others, distance)
    near = distance <= MOST_DISTANCE and (cosine is None or cosine >= LEAST_COSINE)
    return Agreement(near and _claims(tokens) == _claims(others), distance)


def normalised(text: str) -> list[str]:
    """Its tokens without case, white space, punctuation and markdown. Operators stay: `a - b` is not `a + b`."""
    plain = _LINK.sub(r"\1", _LAYOUT.sub("", text))
    plain = _EMPHASIS.sub(lambda found: found[1] or found[2], plain.replace("`", " "))
    return _TOKEN.findall(plain.lower())


def token_distance(a: Sequence[str], b: Sequence[str]) -> float:
    """Levenshtein distance of the first 512 tokens over the longer length, 0.0 to 1.0.

    Bit-parallel (Myers, JACM 46, 1999; Hyyrö 2003): one column of the table is one Python integer.
    """
    a, b = a[:_MOST_TOKENS], b[:_MOST_TOKENS]
    if not a or not b:
        return float(bool(a) != bool(b))
    places: dict[str, int] = {}
    for place, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << place
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = every, 0, len(a)
    for token in b:
        equal = places.get(token, 0)
        zero = (((equal & rises) + rises) ^ rises) | equal | falls
        up = falls | ~(zero | rises) & every
        down = rises & zero
        distance += bool(up & last) - bool(down & last)
        up = up << 1 | 1
        rises = (down << 1 | ~(zero | up)) & every
        falls = up & zero & every
    return distance / max(len(a), len(b))


def _code(text: str) -> list[str]:
    # `ls -r` and `ls -R` are two answers.
    return [(block or span).strip() for block, span in _CODE.findall(text)]


def _claims(tokens: list[str]) -> tuple[list[str], int]:
    """Numbers in their order, and how many negations: few words that turn an answer around."""
    return (
        [token for token in tokens if token[0].isdigit()],
        sum(token in _NEGATION or token.endswith(("n't", "n\u2019t")) for token in tokens),
    )
