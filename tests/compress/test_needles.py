"""Facts hidden in texts stand where they should, once, and are asked for at the end."""

import random

import pytest

from penstock.compress.needles import FactWriter, hide

TEXT = [7] * 5000


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture
def writer() -> FactWriter:
    return FactWriter(encode, 1000)


def places(ids: list[int], part: list[int]) -> list[int]:
    return [start for start in range(len(ids)) if ids[start : start + len(part)] == part]


@pytest.mark.parametrize("depth", [0.0, 0.31, 0.99])
def test_the_fact_stands_once_at_its_depth(writer, depth):
    needle = hide(random.Random(3), TEXT, writer, 1000, depth, 8)
    assert len(needle.text) + len(needle.question) == 1000
    line = [*needle.question, *needle.value, *encode("\n")]
    (place,) = places(needle.text, line)
    assert abs(place - depth * len(needle.text)) < 9 * len(line)
    assert len(places(needle.text, encode("\n# "))) == 9


def test_a_small_vocabulary_gives_its_upper_half():
    fact = FactWriter(encode, 300).draw(random.Random(0))
    assert all(150 <= token < 300 for token in fact.key + fact.value)


def test_a_text_too_short_is_refused(writer):
    with pytest.raises(ValueError, match="the text has 5000"):
        hide(random.Random(3), TEXT, writer, 6000, 0.5, 8)
