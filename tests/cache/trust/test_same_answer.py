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
        ("See [the manual](https://a.example).", "see the manual", False, False, False),
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


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1984. That is the year.", "1948. That is the year."),
        ("12) yes", "13) yes"),
        ("12) yes\n13) no", "14) yes\n15) no"),
        ("✅", "❌"),
        ("?", "."),
        ("x ≤ 5", "x ≥ 5"),
        ("A → B", "A ← B"),
        ("a ∈ B", "a ∉ B"),
        (".5", "5"),
        ("It is .5", "It is 5"),
        ("√2", "2"),
        ("- 5", "5"),
        ("It is -5.", "It is 5."),
        ("> 5", "5"),
        ("5!", "5"),
        ("5\"", "5'"),
        ("2*3*4", "234"),
        ("__init__", "init"),
        ("a-b", "a b"),
        ("It is ready?", "It is ready."),
        ("कि", "का"),
        ("[docs](http://a)", "[docs](http://b)"),
        ("ls -a", "LS -A"),
        ("ls -a", "ls -A"),
        ("rm /A/b", "rm /a/B"),
        ("It is x + 1", "It is X + 1"),
        ("x ≤ 5", "X ≤ 5"),
        ("Call print(x)", "Call Print(X)"),
        ("Edit README.md", "Edit readme.md"),
        ("The key is K7x", "The key is k7X"),
        ("It has 5 MB", "It has 5 Mb"),
        ('{"id":"ab_C"}', '{"id":"AB c"}'),
        ('{"id":"5"}', '{"id":5}'),
        ("```rm x```", "```cat x```"),
        ("`a` - b", "`a` b"),
        ("Open `a`, then `b`.", "Open `b`, then `a`."),
        ("Delete the folder /home/al with all of its files", "Delete the folder /home/bo with all of its files"),
    ],
)  # fmt: skip
def test_what_differs_in_what_may_matter_is_not_the_same(a, b):
    for test in ("exact", "normalised", "agreement"):
        assert not same_answer(a, b, test).same, test
        assert not same_answer(b, a, test).same, test


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("The capital of France is Paris.", "the capital of France is Paris"),
        ("Well-known, isn't it!", "Well known isn\u2019t it"),
        ('He calls it "the best" of all.', "He calls it the best of all"),
        ("- Open it\n- Close it", "* open it\n\n* close it."),
        ("1. Open it\n   Wait.\n2. Close it", "Open it.\nWait.\nClose it."),
        ("## Answer\n\nIt is **42**.", "Answer:\nIt is 42"),
        ("Run `ls -A`.", "run\n```sh\nls -A\n```"),
        ('{"a": 1,\n "b": 2}', '{"a":1,"b":2}'),
        ("x = 5", "x=5"),
    ],
)
def test_layout_does_not_matter(a, b):
    assert same_answer(a, b).same
    assert same_answer(b, a).same


def test_the_distance_says_how_far_apart():
    assert same_answer("one two three four", "One, two, three, five", "exact").distance == 0.25
    assert same_answer("One.", "one", "exact").distance == 0.0
    assert same_answer("alpha beta", "gamma delta", "exact").distance == 1.0
