"""Whether two questions differ in something that commonly changes an answer while hardly moving an embedding.

What is left of two questions after phrasing is taken away (`reading`) is compared: the words, their kinds, and their
order but for phrases that can stand elsewhere in a sentence. Synonyms are only those listed. Every difference has a
category, and a named set of categories forbids that a neighbour's answer be served unverified. Strict forbids all: then
only the same question in other phrasing passes. Whatever is in doubt differs, for a refusal costs one verification and a
wrong answer costs trust.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Literal, get_args

from .facets import SHOWN, Facets, restricted
from .inflection import BASE
from .opposites import OPPOSITES
from .reading import read_alone
from .words import NAMED, STARTERS, listed

CATEGORIES = (*SHOWN, "antonym", "entity", "direction", "order", "word")
"""Every name that `differing` can give. A "word" is in no other category and no name."""

GuardSet = Literal["none", "bare", "lean", "strict"]
GUARD_SETS: tuple[GuardSet, ...] = get_args(GuardSet)  # from the least to the most
# What an embedding hardly sees, and questions with one answer seldom differ in.
_BARE = ("number", "unit", "negation", "antonym", "direction", "order", "code", "quote")
# All but ordinary words and ways of asking, which most questions with one answer differ in.
_LEAN = (*_BARE, "time", "comparison", "quantifier", "modality", "entity")
GUARDS: dict[GuardSet, tuple[str, ...]] = {"none": (), "bare": _BARE, "lean": _LEAN, "strict": CATEGORIES}
"""The categories in which two questions may not differ, by the name of the set."""
DEFAULT_GUARDS: GuardSet = "lean"

_OPPOSITES: dict[str, set[str]] = {}  # of words as they are read
for _word, _others in OPPOSITES.items():
    _OPPOSITES.setdefault(read_alone(_word), set()).update(map(read_alone, _others))
_NEGATING = ("un", "in", "im", "ir", "il", "non", "dis", "mis")
_PERSONS = listed("i me we us you")
_DIRECTED = listed("to from into onto than versus with for over under by")
_PLACED = listed(
    "in on at over under above below behind beside between near out before after since until during"
)
# What goes without saying, mostly: "my balance now".
_NOW = listed("now current currently already yet still immediately recent recently lately again")


def differing(
    query: str | Facets, neighbour: str | Facets, guarded: Collection[str] = CATEGORIES
) -> str | None:
    """The first of the `guarded` categories in which two questions differ, or None.

    Symmetric. What is compared often is passed as `Facets`: reading a question takes longer than comparing two.
    """
    one = Facets.of(query) if isinstance(query, str) else query
    other = Facets.of(neighbour) if isinstance(neighbour, str) else neighbour
    return min(_differences(one, other).intersection(guarded), key=CATEGORIES.index, default=None)


def _differences(one: Facets, other: Facets) -> set[str]:
    """All categories in which two questions differ: at least one where they differ at all."""
    if one.ask_the_same(other):
        return set()
    mine, theirs = _counted(one), _counted(other)
    shared = mine & theirs
    here, there = set(mine - shared), set(theirs - shared)
    found = {category for category in SHOWN if one.held[category] != other.held[category]}
    if _negated(one, shared) == _negated(other, shared):
        found.discard("negation")
    unlike = {*one.words, *other.words} & (here | there)
    if _bases(unlike & here) != _bases(unlike & there):
        found.difference_update(_incidental(one, other))
    elif one.tenses != other.tenses:
        found.add("time")
    if "by" in here ^ there and one.tenses != other.tenses:  # the passive turns round who does it to whom
        found.add("direction")
    found.update(_named(here, there))
    names = one.names | other.names
    if unlike & names:
        found.add("entity")
    if unlike - names - NAMED.keys():
        found.add("word")
    if not here | there <= _PERSONS:
        # In other words, only names must stay where they are, and what is "from" and "to".
        placed = names | STARTERS | (_directed(one) & _directed(other))
        shared = Counter({word: shared[word] for word in shared if word in placed})
    found.update(_moved(one, other, shared))
    return found or {"word"}


def _counted(facets: Facets) -> Counter[str]:
    return Counter(chain.from_iterable(chain.from_iterable(facets.spoken)))


def _bases(words: set[str]) -> set[str]:
    """Other forms of a word, and persons, make no other words."""
    return {BASE.get(word, word) for word in words} - _PERSONS


def _directed(facets: Facets) -> set[str]:
    parts = chain.from_iterable(facets.spoken)
    return set(chain.from_iterable(part for part in parts if part[0] in _DIRECTED))


def _negated(facets: Facets, shared: Counter[str]) -> list[str]:
    """Negations, each with what it negates where the other question has that, too."""
    split = (word.partition(" ") for word in facets.held["negation"])
    return sorted(f"{negation} {word}" if word in shared else negation for negation, _, word in split)


def _incidental(one: Facets, other: Facets) -> Iterator[str]:
    """Categories in which one question only says what the other leaves out: of little weight where words differ, too."""
    if set(one.held["time"]) ^ set(other.held["time"]) <= _NOW:
        yield "time"
    for category in ("quantifier", "modality"):
        here, there = Counter(one.held[category]), Counter(other.held[category])
        if here <= there or there <= here:
            yield category


def _named(here: set[str], there: set[str]) -> Iterator[str]:
    """What to call a difference in words that are only here or only there."""
    if any(not there.isdisjoint(_OPPOSITES.get(word, ())) for word in here):
        yield "antonym"
    if _negates(here, there) or _negates(there, here):
        yield "negation"
    if here & _PERSONS and there & _PERSONS:
        yield "order"
    named = {word: NAMED[word] for word in here | there if word in NAMED}
    yield from set(named.values()) - {"direction"}
    # "To" or "up" on one side only mostly belongs to a verb; other prepositions count where nothing else differs.
    directed = {word for word, category in named.items() if category == "direction"}
    if (directed & here and directed & there) or (here and there and here | there <= _PLACED):
        yield "direction"


def _moved(one: Facets, other: Facets, shared: Counter[str]) -> Iterator[str]:
    """What to call it where these words stand in another order."""
    here, there = restricted(one.spoken, shared), restricted(other.spoken, shared)
    if here != there:
        parts = set(chain.from_iterable(here)) ^ set(chain.from_iterable(there))
        yield "direction" if any(part[0] in _DIRECTED for part in parts) else "order"


def _negates(here: set[str], there: set[str]) -> bool:
    return any(
        word.startswith(prefix) and read_alone(word.removeprefix(prefix)) in there
        for word in here
        for prefix in _NEGATING
    )
