"""Texts to round by, to choose by and to judge by."""

import pytest

from penstock.compress.quantize.calibration import CALIBRATION_TOKENS, HELD_BACK_TEXTS, divide, judged_by
from penstock.compress.texts import Tokens
from penstock.errors import CompressError


def texts(count: int, length: int) -> list[Tokens]:
    return [Tokens([number, *range(length - 1)], [True] * length) for number in range(count)]


def test_no_text_is_in_two_parts() -> None:
    given = texts(80, 50)
    found = divide(given[20:], given[:20])
    ids = [tuple(text.ids) for part in (found.calibration, found.selection, found.held_back) for text in part]
    assert len(set(ids)) == len(ids) == 80
    assert len(found.held_back) == 20 and len(found.selection) == 10
    assert {text.ids[0] for text in found.held_back} == set(range(20))


def test_the_same_texts_are_divided_the_same_way() -> None:
    given = texts(80, 50)
    assert divide(given[20:], given[:20]) == divide(given[20:], given[:20])


def test_many_texts_are_bounded() -> None:
    given = texts(3000, 100)
    found = divide(given[750:], given[:750])
    assert sum(len(text.ids) for text in found.calibration) <= CALIBRATION_TOKENS
    assert len(found.held_back) == HELD_BACK_TEXTS


def test_texts_to_judge_by_are_none_that_the_model_is_rounded_by() -> None:
    given = texts(80, 50)
    found = divide(given[20:], given[:20])
    others = [Tokens([500 + number, 1, 2], [True] * 3) for number in range(5)]
    judged = judged_by(found, [*found.calibration[:3], *found.selection[:2], *others])
    assert judged.held_back == others
    assert (judged.calibration, judged.selection) == (found.calibration, found.selection)
    with pytest.raises(CompressError, match=r"^Of the 4 texts to judge by, 3 are among those"):
        judged_by(found, [*found.calibration[:3], others[0]])


def test_too_few_texts_are_refused_with_how_many_are_needed() -> None:
    with pytest.raises(CompressError, match=r"^3 different texts .* at least 12"):
        divide(texts(2, 500), texts(1, 500))


def test_too_short_texts_are_refused_with_how_many_tokens_are_needed() -> None:
    with pytest.raises(CompressError, match=r"^\d+ tokens .* at least 2048 tokens"):
        divide(texts(30, 10), texts(10, 10))
