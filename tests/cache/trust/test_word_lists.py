"""The lists of words must not undo one another: nothing that turns an answer round may be taken away or made the same."""

from penstock.cache.trust.inflection import BASE, VERBS, base_noun
from penstock.cache.trust.names import NAMES
from penstock.cache.trust.opposites import OPPOSITES
from penstock.cache.trust.words import CATEGORY, DROPPED, PHRASES, SPELLINGS, STARTERS, SYNONYMS


def test_opposites_are_many_and_mutual():
    assert sum(map(len, OPPOSITES.values())) / 2 > 500
    assert all(
        word in OPPOSITES[other] and other != word for word, others in OPPOSITES.items() for other in others
    )


def test_no_opposite_is_taken_away():
    assert [word for word in OPPOSITES if CATEGORY.get(word, ("", ""))[0] == DROPPED] == [
        "do"
    ]  # "undo" stays


def test_opposites_are_neither_synonyms_nor_spellings_of_each_other():
    def meaning(word: str) -> str:
        word = SPELLINGS.get(word, word)
        word = PHRASES.get(word, word)
        base = BASE.get(word) or base_noun(word)
        base = SYNONYMS.get(base, base)
        return CATEGORY.get(word, CATEGORY.get(base, ("", base)))[1]

    merged = [
        (word, other)
        for word, others in OPPOSITES.items()
        for other in others
        if meaning(word) == meaning(other)
    ]
    assert merged == []


def test_synonyms_are_base_forms_and_not_chained():
    assert [word for word in SYNONYMS if BASE.get(word, word) != word or SYNONYMS[word] in SYNONYMS] == []
    assert not SYNONYMS.keys() & CATEGORY.keys()


def test_prepositions_start_a_phrase():
    assert {counts_as for category, counts_as in CATEGORY.values() if category == "preposition"} <= STARTERS


def test_forms_of_verbs():
    forms = {
        "deleting": "delete", "deleted": "delete", "deletes": "delete", "stopping": "stop", "stopped": "stop",
        "tries": "try", "tied": "tie", "tying": "tie", "ran": "run", "written": "write", "planning": "plan",
        "planing": "planing", "fixes": "fix", "showing": "show", "cancelled": "cancel", "canceled": "cancel",
        "freed": "freed", "committing": "commit",
    }  # fmt: skip
    assert {form: BASE.get(form, form) for form in forms} == forms
    assert all(BASE[verb] == verb for verb in VERBS)


def test_plurals():
    plurals = {
        "files": "file", "boxes": "box", "cities": "city", "caches": "cache", "children": "child",
        "classes": "class", "bus": "bus", "virus": "virus", "goods": "goods", "windows": "windows",
        "news": "news", "glass": "glass", "keys": "key", "analysis": "analysis", "dishes": "dish",
        "heroes": "hero", "aws": "aws", "cookies": "cookie",
    }  # fmt: skip
    assert {plural: BASE.get(plural) or base_noun(plural) for plural in plurals} == plurals


def test_comparatives():
    for word in (
        "bigger",
        "biggest",
        "higher",
        "longest",
        "deeper",
        "richer",
        "easier",
        "wider",
        "thinner",
        "lowest",
    ):
        assert CATEGORY[word] == ("comparison", word)


def test_names_are_no_other_words():
    assert all(name == name.lower() for name in NAMES)
    assert NAMES & CATEGORY.keys() == set()
    assert NAMES & OPPOSITES.keys() == set()
    verbs = {name for name in NAMES if name in VERBS}  # which questions mostly speak of as names
    assert verbs == {"bash", "brew", "chase", "grep", "react", "zoom"}
