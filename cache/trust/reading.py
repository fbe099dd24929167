"""From a question's text to its words, each with its category. Knows how English is written, not what changes an answer.

What is neither a listed word nor a number is kept: as a word, by its base form, or letter by letter where it has
other signs (paths, flags, operators) or stands in quotation marks or backticks. In doubt a word stays as it is: then
two texts differ, and the model is asked.
"""

import re
import unicodedata

from .figures import Word, append_number, is_figure
from .inflection import BASE, GOING, PAST, base_noun
from .names import NAMES
from .phrasing import framed, joined
from .words import (
    CATEGORY,
    CONTENT,
    DROPPED,
    LABELLED,
    NUMBERS,
    ORDINALS,
    PERSONS,
    SCALES,
    SPELLINGS,
    STARTERS,
    SYNONYMS,
    UNITS_AFTER_NUMBERS,
    listed,
)

NAME = "name"
"""Category of content that is marked as a name, or listed as one."""
TENSES = ("past", "going", "being")

# In the text a mark and a number stand for what is kept letter by letter.
_LITERAL = re.compile(
    r"```(.*?)```|`([^`]*)`|\"([^\"]*)\"|“([^”]*)”|«([^»]*)»|(?<!\w)'([^']*)'(?!\w)", re.DOTALL
)
_MARK = "\x01"
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b]")

_SENTENCE_ENDS = ".?!:"
_TRAILING, _LEADING = ".,!?;:'\"…\uff1f。\uff01\uff0c、؟", "'\"¿¡"
_HYPHENATED = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]{2,})+")
_OPERATORS = re.compile(r"[=+*(){}\[\]<>&|;^%!\\]|--$|^[\W_]+$")
_NAMES_AND_SIGNS = re.compile(r"[^\W\d_]+[+#*]*")  # c++ and c#
_PRIME = re.compile(r"(\d[\d.,]*)(['\"\u2032\u2033])[.,!?]*")  # 5' and 5"
_SIGN = re.compile(
    r"\.|(?:\d+|\w)!"
)  # a folder ("git add . and commit") or a factorial, before the end of the text
_BITS = frozenset({"Kb", "Mb", "Gb", "Tb"})  # of bits, where "MB" and "mb" are bytes
_NUMBER_STARTS = frozenset("0123456789v$€£¥₹.")

_QUESTIONING = listed("what who how where when why that it there here he she which")  # before 's for "is"
_FULL = {"re": "are", "m": "am", "ve": "have", "ll": "will", "d": "would"}
_NEGATED = {"can't": "can", "won't": "will", "shan't": "shall", "ain't": "is"}

# Beginning with one of these, a question wants yes or no.
_AUXILIARIES = listed(
    "is are was were am do does did can could may might must should shall will would has have had"
)
# "do" is an auxiliary after these, else a verb: "what does it do".
_BEFORE_AN_AUXILIARY = listed("what which why how when where who whom and or") | {""}
# Whom "my" and "your" speak of is nobody in particular where the same person asks how to.
_ASKED_FOR = {
    "howto": frozenset(PERSONS.values()),
    "howto-i": frozenset({"i", "we"}),
    "howto-you": frozenset({"you"}),
}
# Anyone may be meant beside these: "can I freeze rice", "can we freeze rice"; but "can you sing" asks the model itself.
_MODALS = listed("can could should must may")
# Here "starting" is no more than "to start": "command for starting a service", "begin learning".
_BEFORE_AN_ACTIVITY = frozenset({"command"}) | {
    form for form, base in BASE.items() if base in ("start", "begin", "continue", "like", "love", "prefer")
}
# "Stop to eat" is not "stop eating".
_BEFORE_A_PURPOSE = frozenset(
    form for form, base in BASE.items() if base in ("stop", "remember", "forget", "quit", "try", "mean")
)


def read(text: str) -> list[Word]:
    """The words that can matter for the answer, in order.

    Beside the guarded categories, `CONTENT` and `NAME` there are "preposition"; and of `TENSES` "past" (a form that tells
    of the past), "going" (one in -ing: "smoking" is not "smoke") and "being" (a form of "be").
    """
    literals: list[Word] = []
    names: set[str] = set()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("\u2019", "'").replace("\u2018", "'")
    if not text.isprintable():
        text = _CONTROL.sub(" ", text)
    if "`" in text or '"' in text or "'" in text or not text.isascii():
        text = _LITERAL.sub(lambda found: _set_aside(found, literals), text)
    return _classified(joined(framed(" ".join(_plain_words(text, literals, names))).split()), literals, names)


def read_alone(word: str) -> str:
    """What a lone word is read as."""
    base = BASE.get(word) or base_noun(word)
    base = SYNONYMS.get(base, base)
    return CATEGORY.get(word, CATEGORY.get(base, (CONTENT, base)))[1]


def _set_aside(found: re.Match[str], literals: list[Word]) -> str:
    group = found.lastindex or 1
    literals.append(("code" if group <= 2 else "quote", found[group].strip()))
    return f" {_MARK}{len(literals) - 1} "


def _plain_words(text: str, literals: list[Word], names: set[str]) -> list[str]:
    """Lower-cased words without punctuation, contractions in full; what is neither word nor number is set aside as it is.

    Those that are written as names are added to `names`.
    """
    words: list[str] = []
    pieces = text.split()
    last = len(pieces) - 1
    for place, raw in enumerate(pieces):
        word = raw.lower()
        if not word.isalpha():
            if raw[0] == _MARK:
                words.append(raw)
                continue
            if measured := _PRIME.fullmatch(raw):
                words += [measured[1], "foot" if measured[2] in "'\u2032" else "inch"]
                continue
            if raw == ".." or (place < last and _SIGN.fullmatch(raw)):
                literals.append(("code", raw))
                words.append(f"{_MARK}{len(literals) - 1}")
                continue
            raw = _stripped(raw)
            if not raw:
                continue
            word = raw.lower()
        if raw != word or not word.isalpha():
            begins = not place or pieces[place - 1][-1] in _SENTENCE_ENDS
            if _is_marked(raw, word, begins):
                names.update(word.replace("-", " ").replace("'", " ").split())
        if raw[-2:] in _BITS:
            word += "it"
        known = SPELLINGS.get(word)
        if known is not None:
            words += known.split()
        elif word.isalpha() or word in CATEGORY:
            words.append(word)
        elif "'" in word and word.replace("'", "").isalpha():
            words += _uncontracted(word)
        elif _HYPHENATED.fullmatch(word):
            words += word.split("-")
        elif word.isalnum() or is_figure(word):
            words.append(word)
        elif word not in ("\u2013", "—") or (words and words[-1][0].isdigit()):  # a dash, or minus
            is_name = _NAMES_AND_SIGNS.fullmatch(word) or not _OPERATORS.search(raw)
            literals.append((NAME if is_name else "code", raw))
            words.append(f"{_MARK}{len(literals) - 1}")
    return words


def _is_marked(raw: str, word: str, begins: bool) -> bool:
    """Whether it is written like a name: a capital that no sentence begins with, or letters with digits."""
    if raw != word:
        return raw[1:] != word[1:] or not begins
    return word.isalnum() and not word.isdigit() and not is_figure(word)


def _stripped(raw: str) -> str:
    """Without the punctuation around it."""
    while True:
        before = raw
        raw = raw.rstrip(_TRAILING).lstrip(_LEADING)
        if raw.startswith("(") and (")" not in raw or raw.endswith(")")):
            raw = raw[1:].removesuffix(")")
        elif raw.endswith(")") and "(" not in raw:
            raw = raw[:-1]
        if raw == before:
            return raw


def _uncontracted(word: str) -> list[str]:
    if word.endswith("n't"):
        return [_NEGATED.get(word, word[:-3]), "not"]
    stem, _, ending = word.partition("'")
    if ending == "s":
        return [stem, "is"] if stem in _QUESTIONING else ["let", "us"] if stem == "let" else [stem]
    return [stem, _FULL[ending]] if ending in _FULL else [word.replace("'", "")]


def _classified(words: list[str], literals: list[Word], names: set[str]) -> list[Word]:
    found: list[Word] = []
    if words and words[0] in _AUXILIARIES and words[1:2] != ["not"]:
        found.append(("instruction", "whether"))
    persons = {PERSONS[word] for word in words if word in PERSONS}
    both_speak = "you" in persons and len(persons) > 1
    anyone = next((_ASKED_FOR[word] for word in words if word in _ASKED_FOR), frozenset[str]())
    before = ""
    for place, word in enumerate(words):
        category, counts_as = CATEGORY.get(word, (CONTENT, word))
        after = words[place + 1] if place + 1 < len(words) else ""
        if category == CONTENT:
            _append_open(word, before, literals, names, found)
        elif word in ("a", "i") and (
            before in LABELLED or (word == "a" and (not after or after in STARTERS))
        ):
            found.append((CONTENT, word))
        elif category == DROPPED:
            if _is_no_filler(word, before, after):
                found.append((CONTENT, word))
        elif category == "person":
            speaker = counts_as != "you" and (before in _MODALS or after in _MODALS)
            if both_speak or not (speaker or counts_as in anyone):
                found.append((CONTENT, counts_as))
        elif word == "to" and after in BASE and BASE[after] == after and before not in _BEFORE_A_PURPOSE:
            pass  # an infinitive
        elif word == "which" and found and found[-1][0] in (CONTENT, NAME):
            pass  # a relative pronoun, like "that"
        elif word == "am" and found and found[-1][0] == "number":
            found.append(("time", "am"))
        elif category == "being" and (before == "that" or (before == "which" and place > 1)):
            pass  # "files that are open", "files open"
        elif word in ("was", "were"):
            found += [("past", "was"), ("being", "is")]
        else:
            found.append((category, counts_as))
        before = word
    return found


def _is_no_filler(word: str, before: str, after: str) -> bool:
    """Whether a word that mostly says nothing says something here."""
    if word in ("do", "does"):
        return before not in _BEFORE_AN_AUXILIARY and after != "not"
    return word == "that" and (not after or before in _BEFORE_AN_AUXILIARY or before in _AUXILIARIES)


def _append_open(word: str, before: str, literals: list[Word], names: set[str], found: list[Word]) -> None:
    """Appends a word of no closed class: a number, something exact, or content."""
    if word[0] == _MARK:
        found.append(literals[int(word[1:])])
    elif word == "month-may":
        found.append(("time", "may"))
    elif (
        word[0] in _NUMBER_STARTS or word in NUMBERS or word in SCALES or word in ORDINALS
    ) and append_number(word, before, found):
        pass
    elif word in UNITS_AFTER_NUMBERS and found and found[-1][0] == "number":
        found.append(("unit", UNITS_AFTER_NUMBERS[word]))
    else:
        base = BASE.get(word) or base_noun(word)
        base = SYNONYMS.get(base, base)
        known = NAME if word in names or word in NAMES or base in NAMES else CONTENT
        found.append(CATEGORY.get(base, (known, base)) if base != word else (known, base))
        if word in PAST:
            found.append(("past", base))
        elif word in GOING and not (before.startswith("howto") or before in _BEFORE_AN_ACTIVITY):
            found.append(("going", base))
