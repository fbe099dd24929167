"""Whether two completions are the same answer. Pure functions on texts; knows no model and no cache.

`exact`       equal texts: for answers that a machine reads
`normalised`  equal but for white space, the layout of lists and headings and, in prose, for case and the punctuation
              of sentences; code and what looks like it is compared to the letter
`agreement`   nearly the same words, and the very same numbers, signs, negations and code

A difference that is missed is counted as a right answer and loosens a bound; one too many costs a little evidence. So what
is not known to be layout counts.
"""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

SameAnswer = Literal["exact", "normalised", "agreement"]

# Wording may differ by a fifth; what carries the facts (below) may not differ at all.
MOST_DISTANCE = 0.2
# Distances of longer answers are taken on this many tokens: 0.4 ms.
_MOST_TOKENS = 512

_CODE = re.compile(r"```(?:[\w+#.-]*\n)?(.*?)```|`([^`\n]+)`", re.DOTALL)
# Where code was; in no text.
_HOLE = "\0"
# Before a letter only: `- 5` and `# 5` may be meant.
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+(?=[^\W\d_]|[*\0\"“(])", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*([-*•])[ \t]+(?=[^\W\d_]|[*\0\"“(])", re.MULTILINE)
_NUMBER = re.compile(r"^[ \t]*(\d{1,3})[.)][ \t]+(?=\S)", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|={3,})[ \t]*$", re.MULTILINE)
_BOLD = re.compile(r"(?<![\w*])\*\*(?=[^\s*])([^*\n]+)(?<=\S)\*\*(?![\w*])")
_ITALIC = re.compile(r"(?<![\w*])\*(?=[^\W\d_])([^*\n]+)(?<=\S)\*(?![\w*])")

# Commands, calls, paths, addresses, JSON, formulas, names of files: there every sign and the case count.
_LIKE_CODE = re.compile(
    r"[][{}/\\|<>=_~^@`+*\u2190-\u22ff]|\w\(|\$[^\W\d]|(?<!\S)--?[^\W\d]|[^\W_]\.[^\W\d_]{2}"
)
_FIGURE = r"\.?\d+(?:[.,:/]\d+)*[^\W_]*"
_TOKEN = re.compile(rf"{_FIGURE}|[^\W_]+(?:['\u2019][^\W_]+)*|\S")
# What of prose is left out: groups that are no token.
_PROSE = re.compile(
    rf"""
      (?<=[^\W\d_]{{2}}) [.,;:!…"'”\u2019]+ (?=[\s)]|$)  # behind a word
    | (?<=[\w)%\0]) [.,;:…]+ (?=\s|$)   # behind a figure, a bracket, or code; a quote there is an inch
    | (?<![^\s(]) ["'“\u2018]+ (?=[^\W\d_])  # opens a quotation
    | (?<=[^\W\d_]{{2}}) [-\u2010\u2011\u2013—] (?=[^\W\d_]{{2}})  # joins two words; of letters it may be a minus
    | (?<=\s) — (?=\s+[^\W\d_]{{2}})
    | (?P<token> {_FIGURE} | [^\W_]+(?:['\u2019][^\W_]+)* | \S )
    """,
    re.VERBOSE,
)
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


def same_answer(a: str, b: str, test: SameAnswer = "normalised") -> Agreement:
    """Compare two completions by one of the three tests above."""
    if a == b:
        return Agreement(True, 0.0)
    tokens, others = normalised(a), normalised(b)
    # Of two answers without a token nothing is known.
    equal = tokens == others and bool(tokens)
    distance = 0.0 if equal else token_distance(tokens, others)
    if test == "exact":
        return Agreement(False, distance)
    if equal or test == "normalised" or any(_LIKE_CODE.search(_plain(text)) for text in (a, b)):
        return Agreement(equal, distance)
    return Agreement(distance <= MOST_DISTANCE and _claims(tokens) == _claims(others), distance)


def normalised(text: str) -> list[str]:
    """Its tokens without what does not matter. A block or span of code is one token, as is each sign that is left."""
    holes = iter([_code(found) for found in _CODE.finditer(text)])
    plain = _plain(text)
    if _LIKE_CODE.search(plain):
        tokens = _TOKEN.findall(plain)
    else:
        tokens = _folded([found["token"] for found in _PROSE.finditer(plain) if found["token"]])
    return [next(holes, _HOLE) if token == _HOLE else token for token in tokens]


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


def _code(found: re.Match[str]) -> str:
    # The first line's indentation is part of a block.
    return "`" + (found[1].strip("\n").rstrip() if found[1] is not None else found[2].strip())


def _plain(text: str) -> str:
    """Without code and layout. Numbers go where they only count items, from 1 on; bullets where several are alike."""
    text = _HEADING.sub("", _RULE.sub("", _CODE.sub(_HOLE, text)))
    numbers = [int(found[1]) for found in _NUMBER.finditer(text)]
    if len(numbers) > 1 and all(
        number in (1, last + 1) for last, number in zip([0, *numbers], numbers, strict=False)
    ):
        text = _NUMBER.sub("", text)
    bullets = _BULLET.findall(text)
    if len(bullets) > 1 and len(set(bullets)) == 1:
        text = _BULLET.sub("", text)
    return _ITALIC.sub(r"\1", _BOLD.sub(r"\1", text))


def _folded(tokens: list[str]) -> list[str]:
    """Without the case of words. That of `iPhone`, `K7x` and of units (5 MB, 5 Mb) is part of them."""
    folded, before = [], ""
    for token in tokens:
        plain = token.replace("\u2019", "'")
        is_word = plain.isupper() or plain[1:].islower() or len(plain) == 1
        is_code = any(map(str.isdigit, plain)) or before[-1:].isdigit()
        folded.append(plain.lower() if is_word and not is_code else plain)
        before = plain
    return folded


def _claims(tokens: list[str]) -> tuple[list[str], int]:
    """All but the plain words in their order, and how many negations: few words that turn an answer around."""
    return (
        [token for token in tokens if not token.replace("'", "").isalpha()],
        sum(token in _NEGATION or token.endswith("n't") for token in tokens),
    )
