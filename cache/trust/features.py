"""What is known about a query and its near hit before the model is asked: a few numbers and the words that differ.

Knows no labels and no language. Cheap on purpose (about 20 µs for two questions): it runs on every near hit. For the numbers
words are cut to five letters, which is stemming enough to match "directory" and "directories".
"""

import math
import re
from collections import Counter
from collections.abc import Set
from itertools import pairwise

import msgspec
import xxhash

_WORD = re.compile(r"\w+")
# A long prompt costs no more than this many words, its first: what is asked stands there or the texts differ anyway.
_MOST_WORDS = 128
_STEM = 5
# Differing words that are kept: texts that differ in more are far apart anyway.
MOST_DIFFERING = 8

NAMES = (
    "cosine",
    "nearness",
    "words",
    "order",
    "ends",
    "length",
    "figures",
    "margin",
    "support",
)


class Neighbourhood(msgspec.Struct, frozen=True):
    """How the stored answers around a near hit agree with its answer.

    Attributes:
        agreeing: of the next nearest entries, how many hold the same answer as the nearest.
        rival: highest cosine of an entry with another answer; below every admissible cosine where there is none.
    """

    agreeing: int = 0
    rival: float = 0.0


class Features(msgspec.Struct, frozen=True):
    """Attributes:
    numbers: in the order of `NAMES`, all of about the size of one.
    differing: 16-bit hashes of words that one text has more often than the other, at most `MOST_DIFFERING`.
    """

    numbers: tuple[float, ...]
    differing: tuple[int, ...] = ()


def features(query: str, neighbour: str, cosine: float, around: Neighbourhood | None = None) -> Features:
    """Compare two texts.

    Args:
        query, neighbour: the two texts that were embedded.
        cosine: of their embeddings.
        around: the other entries nearby; None when nobody looked.
    """
    around, cosine = around or Neighbourhood(), float(cosine)  # an index may give a numpy number
    whole, other = _words(query), _words(neighbour)
    mine, theirs = [word[:_STEM] for word in whole], [word[:_STEM] for word in other]
    numbers = (
        cosine,
        # Half the way to equality matters as much at 0.98 as at 0.8.
        -math.log(1.02 - min(cosine, 1.0)),
        _jaccard(set(mine), set(theirs)),
        _jaccard(set(pairwise(mine)), set(pairwise(theirs))),
        _equal_ends(mine, theirs),
        (1 + min(len(mine), len(theirs))) / (1 + max(len(mine), len(theirs))),
        float(_figures(mine) == _figures(theirs)),
        cosine - max(around.rival, 0.5),
        math.log1p(around.agreeing),
    )
    return Features(numbers, _differing(whole, other))


def _differing(a: list[str], b: list[str]) -> tuple[int, ...]:
    if a == b:
        return ()
    mine, theirs = Counter(a), Counter(b)
    words = [*(mine - theirs), *(theirs - mine)][:MOST_DIFFERING]
    # 0 stands for no word.
    return tuple(xxhash.xxh32_intdigest(word.encode()) % 0xFFFF + 1 for word in words)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())[:_MOST_WORDS]


def _figures(words: list[str]) -> list[str]:
    return [word for word in words if word[0].isdigit()]


def _jaccard(a: Set[object], b: Set[object]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def _equal_ends(a: list[str], b: list[str]) -> float:
    """Share of the longer text that the common beginning and end cover: an edit in one place leaves it high."""
    most, least = max(len(a), len(b)), min(len(a), len(b))
    if not most:
        return 1.0
    begin = 0
    while begin < least and a[begin] == b[begin]:
        begin += 1
    end = 0
    while end < least - begin and a[-1 - end] == b[-1 - end]:
        end += 1
    return (begin + end) / most
