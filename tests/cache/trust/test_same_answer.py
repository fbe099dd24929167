import random

import pytest

from penstock.cache.trust.same_answer import same_answer, token_distance


def levenshtein(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def test_the_distance_is_levenshteins():
    generator = random.Random(0)
    for _ in range(500):
        a, b = ([generator.choice("abc") for _ in range(generator.randrange(80))] for _ in range(2))
        assert token_distance(a, b) * max(len(a), len(b), 1) == pytest.approx(levenshtein(a, b))


@pytest.mark.parametrize(
    ("a", "b", "exact", "normalised", "agreement"),
    [
        ("Use `ls`.", "Use `ls`.", True, True, True),
        ("Yes, it is.", "yes it is", False, True, True),
        ("# Steps\n\n1. Open it\n2. **Close** it", "Steps:\nopen it,\nclose it.", False, True, True),
        ("See [the manual](https://a.example).", "see the manual", False, True, True),
        # One word of eight.
        ("Open the settings page to change it all.", "Open the settings menu to change it all.", False, False, True),
        ("It takes 3 days to get the parcel.", "It takes 5 days to get the parcel.", False, False, False),
        ("You can return it once it is open.", "You can not return it once it is open.", False, False, False),
        ("You can return it after it is open.", "You can't return it after it is open.", False, False, False),
        ("Run `rm -r folder` to delete it.", "Run `rm -R folder` to delete it.", False, False, False),
        ("a - b", "a + b", False, False, False),
        ("It is 3.5", "It is 35", False, False, False),
        ("", "Something", False, False, False),
        ("Paris is the capital of France.", "Berlin lies on the river Spree.", False, False, False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same(a, b, exact, normalised, agreement):
    for test, same in (("exact", exact), ("normalised", normalised), ("agreement", agreement)):
        assert same_answer(a, b, test).same is same, test
        assert same_answer(b, a, test).same is same, test


def test_embeddings_can_only_forbid():
    a, b = "Open the settings page to change it all.", "Open the settings menu to change it all."
    assert same_answer(a, b, "agreement", cosine=0.95).same
    assert not same_answer(a, b, "agreement", cosine=0.5).same


def test_the_distance_says_how_far_apart():
    assert same_answer("one two three four", "One, two, three, five", "exact").distance == 0.25
    assert same_answer("One.", "one", "exact").distance == 0.0
    assert same_answer("alpha beta", "gamma delta", "exact").distance == 1.0
