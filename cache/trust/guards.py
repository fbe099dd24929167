"""Whether two questions differ in something that commonly changes an answer while hardly moving an embedding.

A neighbour's answer may be served only where nothing differs. The rule is strict: what is left of the two questions
after phrasing is taken away (`reading`) must be the same words, of the same kinds, in the same order but for phrases
that can stand elsewhere in a sentence. Synonyms are only those listed. Whatever is in doubt differs, for a refusal
costs one verification and a wrong answer costs trust.
"""

from itertools import chain

from .opposites import OPPOSITES
from .reading import read
from .words import NAMED, STARTERS, listed

_SHOWN = (
    "code",
    "quote",
    "number",
    "unit",
    "time",
    "negation",
    "comparison",
    "quantifier",
    "modality",
    "instruction",
)
CATEGORIES = (*_SHOWN, "antonym", "entity", "direction", "order")
"""Every name that `differing` can give."""

# Words for a relation that holds both ways: "between X and Y" is "between Y and X".
_SYMMETRIC = listed("difference similarity distance relationship relation compare comparison")
_DIRECTED = listed("to from into onto than versus with for over under by")
_LINKS = listed("and or than versus because if")  # begin a clause
_ASKED = listed("howto how what why when where who whose whether")
_LONGEST = 4000  # characters; the cost of reading grows with them
_NEGATING = ("un", "in", "im", "ir", "il", "non", "dis", "mis")


class Facets:
    """What one question holds in each category; two questions ask the same only where all of it is equal.

    Attributes:
        held: for each category that a single word can show, its words in order.
        words: the other words, sorted.
        tenses: verbs in the past and in -ing, and whether there is a form of "be", sorted: "what is she like" differs
            from "what does she like" in nothing else.
        clauses: all words, clause by clause; in each, the parts of it that can change places, sorted.
    """

    __slots__ = ("clauses", "held", "tenses", "words")

    def __init__(
        self,
        held: tuple[tuple[str, ...], ...],
        words: tuple[str, ...],
        tenses: tuple[str, ...],
        clauses: tuple[tuple[tuple[str, ...], ...], ...],
    ) -> None:
        self.held, self.words, self.tenses, self.clauses = held, words, tenses, clauses

    @classmethod
    def of(cls, text: str) -> "Facets":
        """About 30 µs for a question of twenty words; a text of more than 4,000 characters is only compared as it is."""
        if len(text) > _LONGEST:
            return cls((), (text,), (), ())
        held: dict[str, list[str]] = {category: [] for category in _SHOWN}
        words: list[str] = []
        tenses: list[str] = []
        part: list[str] = []
        clauses = [[part]]
        negated = False
        for category, word in read(text):
            if category in ("past", "going", "being"):
                tenses.append(f"{category} {word}")
                continue
            if negated:  # what is negated counts: "not empty and readable", "empty and not readable"
                held["negation"][-1] += f" {word}"
                negated = False
            if category in held:
                held[category].append(word)
                negated = category == "negation"
            else:
                words.append(word)
            if word in _LINKS and part[:1] != ["between"]:
                part = []
                clauses.append([part])
            elif word in STARTERS or category == "instruction":
                part = []
                clauses[-1].append(part)
            part.append(f"`{word}" if category in ("code", "quote") else word)
        if not _SYMMETRIC.isdisjoint(words):
            clauses = [[_either_way(part) for part in parts] for parts in clauses]
        clauses[-1].extend(_fronted(clauses[0]))
        return cls(
            tuple(map(tuple, held.values())),
            tuple(sorted(words)),
            tuple(sorted(set(tenses))),
            tuple(map(_movable, clauses)),
        )


def differing(query: str | Facets, neighbour: str | Facets) -> str | None:
    """The first category in which two questions differ in a way that may change the answer, or None.

    Symmetric. What is compared often is passed as `Facets`: reading a question costs twenty times what comparing two does.
    """
    one = Facets.of(query) if isinstance(query, str) else query
    other = Facets.of(neighbour) if isinstance(neighbour, str) else neighbour
    if one.held != other.held:
        differs = zip(_SHOWN, one.held, other.held, strict=False)
        return next((category for category, here, there in differs if here != there), "entity")
    if one.words != other.words:
        return _named(set(one.words) ^ set(other.words))
    if one.tenses != other.tenses:
        return "time"
    if one.clauses != other.clauses:
        moved = set(chain.from_iterable(one.clauses)) ^ set(chain.from_iterable(other.clauses))
        return "direction" if any(part[0] in _DIRECTED for part in moved) else "order"
    return None


def _fronted(parts: list[list[str]]) -> list[list[str]]:
    """Takes away and returns what stands before the question: "in Python, how do I ..."."""
    asked = next((place for place, part in enumerate(parts) if part and part[0] in _ASKED), 0)
    fronted = [part for part in parts[:asked] if part]
    if any(part[0] not in STARTERS for part in fronted):
        return []
    del parts[:asked]
    return fronted


def _movable(parts: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    """The parts of a clause, sorted; as they stand if two begin alike: "with a dog in a car with a cat"."""
    kept = [tuple(part) for part in parts if part]
    return tuple(sorted(kept) if len({part[0] for part in kept}) == len(kept) else kept)


def _either_way(part: list[str]) -> list[str]:
    """`between X and Y` with X and Y sorted."""
    if part[:1] != ["between"] or part.count("and") != 1:
        return part
    middle = part.index("and")
    one, other = sorted((part[1:middle], part[middle + 1 :]))
    return ["between", *one, "and", *other]


def _named(words: set[str]) -> str:
    """What to call a difference in these words."""
    if any(not words.isdisjoint(OPPOSITES.get(word, ())) for word in words):
        return "antonym"
    if any(prefix + word in words for word in words for prefix in _NEGATING):
        return "negation"
    return next((NAMED[word] for word in sorted(words) if word in NAMED), "entity")
