"""Numbers as people write them, brought to one form: 1,000 and "one thousand", 2nd and "second", 5GB and 5 GB."""

import re

from .words import CATEGORY, NUMBERS, ORDINALS, SCALES, UNITS_AFTER_NUMBERS

Word = tuple[str, str]
"""Category and the form the word counts as."""

_NUMBER = re.compile(
    r"(?P<sign>[$€£¥₹]?)(?P<value>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)(?P<unit>%|°?[a-zµ]+|°|[a-z]+/[a-z]+|[$€£¥₹])?"
)
_OTHER_FIGURES = re.compile(r"v?\d[\d.:/\u2013-]*")  # versions, times, dates, ranges
_SUFFIXES = {"k": 10**3, "m": 10**6, "mn": 10**6, "bn": 10**9}
_MOST_DIGITS = 16  # longer ones a float no longer tells apart


def is_figure(word: str) -> bool:
    return bool(_NUMBER.fullmatch(word) or _OTHER_FIGURES.fullmatch(word))


def append_number(word: str, before: str, found: list[Word]) -> bool:
    """Appends a number, with its unit if that is written together with it; False, and nothing, if the word is none.

    A number that goes on one before ("twenty" "five", "two" "hundred") takes its place.

    Args:
        word: lower case.
        before: the word before it.
        found: what was read so far.
    """
    follows = bool(found) and found[-1][0] == "number"
    if word in NUMBERS:
        value = NUMBERS[word]
        if follows and (NUMBERS.get(before, 0) >= 20 > 10 > value or before in SCALES):
            value += int(found.pop()[1])
        found.append(("number", str(value)))
    elif word in SCALES:
        count = found.pop()[1] if follows and _is_plain(found[-1][1]) else "1"
        found.append(("number", _written(float(count) * SCALES[word])))
    elif word in ORDINALS:
        found.append(("number", f"#{ORDINALS[word]}"))
    elif len(word) < _MOST_DIGITS and (parts := _NUMBER.fullmatch(word)):
        _append_digits(parts, found)
    elif _OTHER_FIGURES.fullmatch(word):
        found.append(("number", word.lstrip("v").replace("\u2013", "-")))
    else:
        return False
    return True


def _append_digits(parts: re.Match[str], found: list[Word]) -> None:
    digits, unit, sign = parts["value"].replace(",", ""), parts["unit"] or "", parts["sign"]
    if digits.startswith("."):
        digits = "0" + digits
    if unit in ("st", "nd", "rd", "th"):
        digits = "#" + digits
    elif unit in _SUFFIXES and (unit != "m" or sign):  # 5m may be metres, $5m is not
        digits = _written(float(digits) * _SUFFIXES[unit])
    elif unit in ("am", "pm"):
        found += [("number", digits), ("time", unit)]
        return
    elif unit in UNITS_AFTER_NUMBERS:
        found += [("number", digits), ("unit", UNITS_AFTER_NUMBERS[unit])]
        return
    elif unit:
        found += [("number", digits), CATEGORY.get(unit, ("unit", unit))]
        return
    found.append(("number", digits))
    if sign:  # "$20" is read as "20 dollars"
        found.append(CATEGORY[sign])


def _is_plain(digits: str) -> bool:
    return len(digits) < _MOST_DIGITS and digits.replace(".", "", 1).isdigit()


def _written(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
