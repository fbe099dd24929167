"""Texts to round by, to choose by and to judge by."""

import pytest

from penstock.compress.quantize.calibration import CALIBRATION_TOKENS, HELD_BACK_TEXTS, divide
from penstock.compress.texts import Tokens
from penstock.errors import CompressError


def texts(count: int, length: int) -> list[Tokens]:
    return [Tokens([number, *range(length - 1)], [True] * length) for number in range(count)]


def test_no_text_is_in_two_parts_nor_twice_in_one() -> None:
    given = texts(80, 50)
    found = divide([*given, *given])
    ids = [tuple(text.ids) for part in (found.calibration, found.selection, found.held_back) for text in part]
    assert len(set(ids)) == len(ids) == 80
    assert len(found.held_back) == 20 and len(found.selection) == 10


def test_the_same_texts_are_divided_the_same_way_whatever_their_number_of_copies() -> None:
    given = texts(80, 50)
    assert divide(given).digest == divide([*given, *given[:7]]).digest
    assert divide(given).digest != divide(texts(80, 51)).digest


def test_many_texts_are_bounded() -> None:
    found = divide(texts(3000, 100))
    assert sum(len(text.ids) for text in found.calibration) <= CALIBRATION_TOKENS
    assert len(found.held_back) == HELD_BACK_TEXTS


def test_too_few_texts_are_refused_with_how_many_are_needed() -> None:
    with pytest.raises(CompressError, match=r"^3 different texts .* at least 12"):
        divide(texts(3, 500))


def test_too_short_texts_are_refused_with_how_many_tokens_are_needed() -> None:
    with pytest.raises(CompressError, match=r"^\d+ tokens .* at least 2048 tokens"):
        divide(texts(40, 10))
