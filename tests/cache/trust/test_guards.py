"""What two questions must share before one's answer may serve the other, on hand-written pairs and as properties."""

import random
import re
import string
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trust_traffic import HAND_WRITTEN, Pair, read_pairs

from penstock.cache.trust.facets import Facets
from penstock.cache.trust.guards import CATEGORIES, GUARD_SETS, GUARDS, differing
from penstock.cache.trust.names import NAMES
from penstock.cache.trust.opposites import OPPOSITES

PAIRS = read_pairs(HAND_WRITTEN)
WRONG = [pair for pair in PAIRS if not pair.same]
SAME = [pair for pair in PAIRS if pair.same]
TEXTS = sorted({text for pair in PAIRS for text in (pair.query, pair.neighbour)})
PLAIN = [
    text
    for text in TEXTS
    if re.fullmatch(r"(?:How|What|Why|Which|Can|Is|Do|Does|Explain)(?: [a-zA-Z]+){3,}\?", text)
]
WORDS = st.text(st.characters(codec="utf-8"), max_size=60) | st.lists(
    st.sampled_from([word for text in TEXTS for word in text.split()]), max_size=25
).map(" ".join)


@pytest.mark.parametrize("category", CATEGORIES)
def test_what_changes_an_answer_is_refused(category):
    pairs = [pair for pair in WRONG if pair.category == category]
    assert len(pairs) >= 25
    found = [differing(pair.query, pair.neighbour) for pair in pairs]
    assert [pair for pair, name in zip(pairs, found, strict=True) if name is None] == []
    assert set(found) <= set(CATEGORIES)
    # A pair may differ in two ways, of which one is named.
    assert found.count(category) / len(pairs) > 0.65


@pytest.mark.parametrize("name", ["bare", "lean"])
def test_what_is_guarded_is_refused_whatever_else_differs(name):
    pairs = [pair for pair in WRONG if pair.category in GUARDS[name]]
    passed = [pair.query for pair in pairs if differing(pair.query, pair.neighbour, GUARDS[name]) is None]
    assert passed == []


@pytest.mark.parametrize(
    ("query", "neighbour", "category"),
    [
        ("how do i split a file into 3 parts", "what splits a document into 4 pieces", "number"),
        ("transfer 100 dollars from checking to savings", "move 100 dollars from savings to checking", "direction"),
        ("what is the weather in paris", "how is the weather looking in rome", "entity"),
        ("how do i start the web server", "what command would stop my web server", "antonym"),
        ("does Kim owe Sandy money", "is there money that Sandy owes Kim", "order"),
        ("is there anything i must bring to the gym", "which things can i bring along to the gym", "modality"),
        ("why does my card not work abroad", "does a card work when abroad", "negation"),
    ],
)  # fmt: skip
def test_lean_guards_hold_in_other_words(query, neighbour, category):
    assert differing(query, neighbour, GUARDS["lean"]) == category


@pytest.mark.parametrize(
    ("query", "neighbour"),
    [
        ("how do i cancel my order", "what must happen so that my order gets cancelled"),
        ("my card isn't working", "my card does not function"),
        ("how much money is in my account now", "tell me the balance of my account"),
        ("what was the total of my last bill", "how much did the last bill come to"),
        ("play some jazz music", "put on jazz"),
    ],
)
def test_lean_guards_leave_ordinary_words_to_the_bound(query, neighbour):
    assert differing(query, neighbour, GUARDS["lean"]) is None
    assert differing(query, neighbour) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Oslo", "Bergen"), ("BERGEN", "oslo"), ("nginx", "apache"), ("useState", "useEffect"), ("-x", "-c"),
        ("main.py", "test.py"), ("/etc/passwd", "/etc/group"), ("python", "ruby"), ("x86", "arm64"),
        ("ibuprofen", "paracetamol"), ("example.com", "example.org"), ("Ann's", "Eva's"),
    ],
)  # fmt: skip
def test_names_are_told_from_other_words(one, other):
    assert (
        differing(f"what do you know about {one} today", f"what do you know about {other} today") == "entity"
    )


def test_no_capital_makes_a_name_where_a_sentence_begins():
    assert differing("Sailing is hard. Boats are dear", "Sailing is hard. Ships are dear") == "word"
    assert differing("Sailing is hard with Boats", "Sailing is hard with Ships") == "entity"


def test_listed_names_are_refused_as_such():
    names = sorted(NAMES)
    found = [
        differing(f"tell us about {one}", f"tell us about {other}", GUARDS["lean"])
        for one, other in pairwise(names)
    ]
    assert found.count("entity") == len(found)


def test_paraphrases_pass():
    """115 of 125 when this was written; the others need more than phrasing taken away."""
    assert len(SAME) >= 120
    passed = [pair for pair in SAME if differing(pair.query, pair.neighbour) is None]
    assert len(passed) / len(SAME) >= 0.9


def test_facets_stand_for_their_text():
    for pair in random.Random(0).sample(PAIRS, 100):
        one, other = Facets.of(pair.query), Facets.of(pair.neighbour)
        expected = differing(pair.query, pair.neighbour)
        assert differing(one, other) == differing(one, pair.neighbour) == expected


@pytest.mark.parametrize("pair", random.Random(1).sample(PAIRS, 60), ids=lambda pair: pair.query)
def test_it_does_not_matter_which_was_asked_first(pair: Pair):
    assert differing(pair.query, pair.neighbour) == differing(pair.neighbour, pair.query)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_any_text_is_like_itself_and_the_order_of_two_does_not_matter(one, other):
    assert differing(one, one) is None
    for guards in GUARDS.values():
        assert differing(one, other, guards) == differing(other, one, guards)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_a_larger_set_refuses_all_that_a_smaller_one_does(one, other):
    refused = [differing(one, other, GUARDS[name]) for name in GUARD_SETS]
    assert all(found in GUARDS[name] for name, found in zip(GUARD_SETS, refused, strict=True) if found)
    assert refused[0] is None
    assert sorted(refused, key=lambda found: found is not None) == refused


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(PLAIN),
    st.sampled_from([str.upper, str.lower, str.title, str.swapcase]),
    st.sampled_from(["", "?", "??", "!", ".", " ...", " ?!"]),
    st.sampled_from([" ", "  ", "\n", "\t "]),
)
def test_case_punctuation_and_spaces_do_not_matter(text, change, end, space):
    assert differing(text, change(space.join(text.rstrip("?").split()) + end)) is None


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(PLAIN),
    st.sampled_from(["", "Hi, ", "Hello! ", "hey ", "Please, ", "Good morning, "]),
    st.sampled_from(["", " Thanks!", " please", " Thank you very much.", ", thanks in advance"]),
)
def test_courtesy_does_not_matter(text, opening, closing):
    assert differing(text, opening + text + closing) is None


def test_courtesy_that_is_asked_about_matters():
    assert differing("How do you say please", "How do you say thanks")
    assert differing("thanks in Dutch", "hello in Dutch")


FRAMES = [
    "How do I {}?", "How can I {}?", "how to {}", "What is the best way to {}?", "what's the way to {}", "How does one {}?",
    "Is there a way to {}?", "Could you tell me how to {}?", "I would like to know how to {}.", "What should I do to {}?",
    "Do you know how I can {}?", "Please explain how to {}", "How should we {}?",
]  # fmt: skip


@pytest.mark.parametrize("frame", FRAMES)
def test_ways_of_asking_how(frame):
    for task in ("sort a table by date", "renew my passport", "stop a process", "remove rust from a bike"):
        assert differing(f"How do I {task}?", frame.format(task)) is None


@pytest.mark.parametrize(
    "template", ["How do I {} the thing?", "Is it {}?", "What is {} rate of this item?", "{}"]
)
def test_an_opposite_never_passes(template):
    passed = [
        (word, other)
        for word, others in OPPOSITES.items()
        for other in others
        if differing(template.format(word), template.format(other)) is None
    ]
    assert passed == []


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.sampled_from(["{}", "{} km", "${}", "{}%", "{:,}", "v{}", "{}.5"]),
)
def test_numbers_differ_unless_they_are_equal(one, other, form):
    text = f"What does {form} mean for a car?"
    assert (differing(text.format(one), text.format(other)) is None) is (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3", "three"), ("25", "twenty five"), ("25", "twenty-five"), ("200", "two hundred"),
        ("1,000", "one thousand"), ("1000000", "1 million"), ("2.5 million", "2500000"),
        ("the 2nd", "the second"), ("5GB", "5 GB"), ("5 gigabytes", "5 GB"), ("50%", "50 percent"),
        ("50%", "fifty per cent"), ("$20", "20 dollars"), ("$20", "20 USD"), ("10 km", "10 kilometres"),
        ("10k", "10,000"), ("v3.11", "3.11"), ("205", "two hundred five"), ("£5", "5 pounds"),
        ("30 secs", "30 seconds"),
    ],
)  # fmt: skip
def test_forms_of_one_number(one, other):
    assert differing(f"Is {one} enough for a car?", f"Is {other} enough for a car?") is None


@given(
    st.text(string.ascii_lowercase, min_size=4, max_size=9),
    st.text(string.ascii_lowercase, min_size=4, max_size=9),
)
def test_a_name_it_has_never_seen_matters(one, other):
    one, other = f"q{one}x", f"q{other}x"
    assert (differing(f"How do I configure {one}?", f"How do I configure {other}?") is None) is (one == other)
    if one != other:
        assert differing(f"Does {one} use {other}?", f"Does {other} use {one}?") == "order"
        assert differing(f"Convert from {one} to {other}", f"Convert from {other} to {one}") == "direction"
        assert differing(f"Convert from {one} to {other}", f"Convert to {other} from {one}") is None


@pytest.mark.parametrize(
    ("query", "neighbour"),
    [
        ("What is my name?", "What is your name?"),
        ("What does a plumber do?", "What is a plumber?"),
        ("What is she like?", "What does she like?"),
        ("Did he stop to eat?", "Did he stop eating?"),
        ("What do I owe you?", "What do you owe me?"),
        ("How do you feel?", "How to feel?"),
        ("What is 6 / 3?", "What is 6 - 3?"),
        ("What is 2³?", "What is 23?"),
        ("Which is the best?", "Which was the best?"),
        ("Run a stopped container", "Stop a running container"),
        ("Are few shops open?", "Are a few shops open?"),
        ("Is vitamin A good?", "Is vitamin good?"),
        ("Where is the nearest parking?", "Where is the nearest park?"),
        ("How do I say my name?", "How do you say your own name?"),
        ("How do I say my name?", "How do I say your name?"),
        ("How do you say my name?", "How do you say your name?"),
        ("Is the shop open at 9am?", "Is the shop open at 9pm?"),
        ("Is there a doctor on the plane?", "Is the doctor on the plane?"),
        ('How much is 5" in cm?', "How much is 5' in cm?"),
        ("Is 5! big?", "Is 5 big?"),
        ("How do I clean Windows?", "How do I clean a window?"),
        ("Is the event in May?", "Is the event in June?"),
        ("这个多少钱", "那个多少钱"),
    ],
)
def test_small_words_that_matter(query, neighbour):
    assert differing(query, neighbour)


def test_a_long_text_is_compared_as_it_is():
    text = "How do I sort a list? " * 300
    assert differing(text, text) is None
    assert differing(text, text + "!") == "entity"
    assert differing(text, "How do I sort a list?")


@pytest.mark.parametrize(
    "text",
    ["", "?", "'", "`", '"', "()", "``````", "'''", "$", "%", "-", "\x01", "\x0199", "how to ", "a" * 4000],
)
def test_odd_texts(text):
    assert differing(text, text) is None
    assert differing(text, "What is a car?")
