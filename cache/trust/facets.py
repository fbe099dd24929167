"""What one question holds, category by category, so that two questions can be compared. Knows one question at a time."""

from collections.abc import Mapping

from .reading import NAME, TENSES, read
from .words import STARTERS, listed

SHOWN = (
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
"""The categories that a single word can show."""

# Words for a relation that holds both ways: "between X and Y" is "between Y and X".
_SYMMETRIC = listed("difference similarity distance relationship relation compare comparison")
_LINKS = listed("and or than versus because if")  # begin a clause
_ASKED = listed("howto how what why when where who whose whether")
_LONGEST = 4000  # characters; the cost of reading grows with them

Parts = tuple[tuple[str, ...], ...]


class Facets:
    """What one question holds in each category; two questions ask the same only where all of it is equal.

    Attributes:
        held: the words of each category of `SHOWN`, in order.
        words: the other words, sorted.
        names: those of them that are marked as names, or known to be one. Says nothing about what is asked.
        tenses: verbs in the past and in -ing, and whether there is a form of "be", sorted: "what is she like" differs
            from "what does she like" in nothing else.
        spoken: all words, clause by clause, and in each the parts of it that can change places.
        clauses: the same with the parts sorted.
    """

    __slots__ = ("clauses", "held", "names", "spoken", "tenses", "words")

    def __init__(
        self,
        held: dict[str, list[str]],
        words: tuple[str, ...],
        names: frozenset[str],
        tenses: tuple[str, ...],
        spoken: tuple[Parts, ...],
    ) -> None:
        self.held, self.words, self.names, self.tenses, self.spoken = held, words, names, tenses, spoken
        self.clauses = tuple(map(movable, spoken))

    @classmethod
    def of(cls, text: str) -> "Facets":
        """About 30 µs for a question of twenty words; a text of more than 4,000 characters is only compared as it is."""
        held: dict[str, list[str]] = {category: [] for category in SHOWN}
        if len(text) > _LONGEST:
            return cls(held, (text,), frozenset((text,)), (), (((text,),),))
        words: list[str] = []
        names: set[str] = set()
        tenses: list[str] = []
        part: list[str] = []
        clauses = [[part]]
        negated = False
        for category, word in read(text):
            if category in TENSES:
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
                if category == NAME:
                    names.add(word)
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
            held,
            tuple(sorted(words)),
            frozenset(names),
            tuple(sorted(set(tenses))),
            tuple(tuple(tuple(part) for part in parts if part) for parts in clauses),
        )

    def ask_the_same(self, other: "Facets") -> bool:
        return (self.words, self.held, self.tenses, self.clauses) == (
            other.words,
            other.held,
            other.tenses,
            other.clauses,
        )


def movable(parts: Parts) -> Parts:
    """The parts of a clause, sorted; as they stand if two begin alike: "with a dog in a car with a cat"."""
    return tuple(sorted(parts)) if len({part[0] for part in parts}) == len(parts) else parts


def restricted(spoken: tuple[Parts, ...], kept: Mapping[str, int]) -> tuple[Parts, ...]:
    """Clauses of no words but `kept`, each as often as it says, with the parts sorted.

    A part that loses its first word goes on the one before, and so does a clause.
    """
    left = dict(kept)
    clauses: list[list[list[str]]] = [[[]]]
    for number, parts in enumerate(spoken):
        for place, part in enumerate(parts):
            for position, word in enumerate(part):
                if not left.get(word):
                    continue
                left[word] -= 1
                if not position:
                    if number and not place:
                        clauses.append([])
                    clauses[-1].append([])
                clauses[-1][-1].append(word)
    return tuple(movable(tuple(tuple(part) for part in parts if part)) for parts in clauses)


def _fronted(parts: list[list[str]]) -> list[list[str]]:
    """Takes away and returns what stands before the question: "in Python, how do I ..."."""
    asked = next((place for place, part in enumerate(parts) if part and part[0] in _ASKED), 0)
    fronted = [part for part in parts[:asked] if part]
    if any(part[0] not in STARTERS for part in fronted):
        return []
    del parts[:asked]
    return fronted


def _either_way(part: list[str]) -> list[str]:
    """`between X and Y` with X and Y sorted."""
    if part[:1] != ["between"] or part.count("and") != 1:
        return part
    middle = part.index("and")
    one, other = sorted((part[1:middle], part[middle + 1 :]))
    return ["between", *one, "and", *other]
