"""Which texts are left out because they hold what is somebody's own: rules by pattern, and by checksum where there is one.

They know forms, not meanings: a name or a street has none. What looks like both is left out.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from ...errors import ConfigError

_EMAIL = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}")
_PHONE = re.compile(
    r"""
      (?<![\w.+]) (?:\+|00) [1-9] (?:[ ().\-/]{0,2}\d){7,14} (?!\w)         # with the country
    | (?<![\w.-]) (?:\(\d{3}\)[ ]?|\d{3}[ .-]) \d{3} [ .-] \d{4} (?![\w-])   # 555-123-4567
    | (?<![\w.-]) \(?0[1-9]\d{1,4}\)? [ /-]{1,2} \d{3,} (?:[ -]?\d{2,})* (?![\w-])  # 030 1234567
    """,
    re.VERBOSE,
)
_LEAST_PHONE = 9
_CARD = re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", re.IGNORECASE)
_SHORTEST_IBAN = 15
_ADDRESS = re.compile(
    r"""
      (?<![\w.]) \d{1,3} (?:\.\d{1,3}){3} (?! \w | \.\d )
    | (?<![\w.:]) [0-9a-f]{1,4} (?: ::? [0-9a-f]{1,4} ){2,7} (?:::)? (?![\w:])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_SECRET = re.compile(
    r"""
      -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
    | (?<![\w-]) (?: sk|pk|rk ) [-_] [\w-]{16,}
    | (?<!\w) (?: gh[pousr]_\w{20,} | github_pat_\w{20,} | glpat-[\w-]{16,} | hf_\w{20,} | xox[abeoprs]-[\w-]{10,} )
    | (?<!\w) (?: AKIA|ASIA ) [A-Z0-9]{16} (?!\w)
    | (?<!\w) AIza [\w-]{30,}
    | (?i: \b bearer [ ] ) (?=[\w.~+/-]*\d) [\w.~+/-]{12,}
    | (?<!\w) [a-z][a-z0-9+.-]*:// [^\s/:@]+ : [^\s/@]+ @
    | (?<!\w) eyJ[\w-]{8,} \. eyJ[\w-]{8,} \. [\w-]{8,}
    | (?i: (?<![^\W_]) (?:password|passwd|passphrase|secret|token|api[_-]?key) (?:[_-]\w+)*
           (?: ["']? \s* (?:[=:]|\bis\b) \s* ["']? | (?<=password) [ ] ) )
      (?=[^\s"']*\d) (?=[^\s"']*[^\W\d_]) [^\s"']{8,}
    """,
    re.VERBOSE,
)  # fmt: skip

Rule = Callable[[str], bool]


def _emails(text: str) -> bool:
    return _EMAIL.search(text) is not None


def _phones(text: str) -> bool:
    return any(_digits(found) >= _LEAST_PHONE for found in _found(_PHONE, text))


def _cards(text: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1)."""
    return any(_passes_luhn([int(char) for char in found if char.isdigit()]) for found in _found(_CARD, text))


def _ibans(text: str) -> bool:
    """ISO 13616: modulo 97. What follows it as words of four letters may look like a part of it."""
    for found in _found(_IBAN, text):
        groups = found.split(" ")
        for end in range(len(groups), 0, -1):
            compact = "".join(groups[:end])
            if len(compact) >= _SHORTEST_IBAN and _is_one_by_97(compact):
                return True
    return False


def _addresses(text: str) -> bool:
    """Of machines in the internet; those of private networks are nobody's in particular."""
    for found in _found(_ADDRESS, text):
        try:
            address = ipaddress.ip_address(found)
        except ValueError:
            continue
        if address.is_global and (address.version == 4 or address in _GLOBAL_UNICAST):
            return True
    return False


def _secrets(text: str) -> bool:
    return _SECRET.search(text) is not None


RULES: Mapping[str, Rule] = {
    "email": _emails,
    "phone": _phones,
    "card": _cards,
    "iban": _ibans,
    "ip": _addresses,
    "secret": _secrets,
}


def rules(added: Iterable[str] = (), kept: Iterable[str] = ()) -> dict[str, Rule]:
    """By their names.

    Args:
        added: NAME=REGEX each.
        kept: names of rules that are not to be applied.

    Raises ConfigError for a pattern that is none, a name that is taken, and one that no rule has.
    """
    chosen = dict(RULES)
    for name in kept:
        if chosen.pop(name, None) is None:
            raise ConfigError(
                f"keep_pii is {name!r}, and no rule is called so; there are {', '.join(RULES)}.",
                param="keep_pii",
            )
    for text in added:
        name, equals, pattern = text.partition("=")
        if not name or not equals or not pattern:
            raise ConfigError(
                rf"pii_pattern is {text!r}; write NAME=REGEX, as customer=C-\d{{6}}.", param="pii_pattern"
            )
        if name in RULES or name in chosen:
            raise ConfigError(f"pii_pattern: there is a rule {name!r} already.", param="pii_pattern")
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"pii_pattern {name} is no regular expression: {error}.", param="pii_pattern"
            ) from error
        chosen[name] = lambda text, compiled=compiled: compiled.search(text) is not None  # type: ignore[misc]
    return chosen


def matching(rules: Mapping[str, Rule], text: str) -> list[str]:
    """The names of the rules that find something in it."""
    return [name for name, finds in rules.items() if finds(text)]


def _found(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return (found[0] for found in pattern.finditer(text))


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _passes_luhn(digits: list[int]) -> bool:
    doubled = (digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2])
    return len(set(digits)) > 1 and (sum(doubled) + sum(digits[::-2])) % 10 == 0


def _is_one_by_97(compact: str) -> bool:
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1
