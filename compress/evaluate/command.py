"""Whether two command lines do the same, as far as their words tell: programs, flags and operands, in their order.

What the shell would make of quotes, variables and globs is not looked into.
"""

import shlex
from dataclasses import dataclass

SEPARATORS = {"|", "|&", "||", "&&", "&", ";"}
# A single dash begins a whole word here, and its place matters: `find . -name x -type f` is no bundle of letters.
WHOLE_WORDS = {
    "find",
    "java",
    "ffmpeg",
    "ffprobe",
    "openssl",
    "convert",
    "magick",
    "terraform",
    "go",
    "xrandr",
}
# Their first operand is a bundle of flags, with a dash or without.
BUNDLE_FIRST = {"tar", "ar"}


@dataclass(frozen=True, slots=True)
class _Command:
    """Attributes:
    flags: unbundled; in any order, but of WHOLE_WORDS.
    operands, redirections: in order.
    """

    before: str
    program: str
    flags: frozenset[str]
    operands: tuple[str, ...]
    redirections: tuple[str, ...]


def same_command(answer: str, wanted: str) -> bool:
    """The same programs joined in the same way, each with the same set of flags and the same operands in order.

    Short flags may be bundled (`-la` is `-a -l`); a flag's short and long forms, and the two ways of giving a long one its
    value, are different words.
    """
    if answer.split() == wanted.split():
        return bool(answer.split())
    try:
        return _commands(answer) == _commands(wanted)
    except ValueError:  # a quote that never ends
        return False


def _commands(line: str) -> list[_Command]:
    """Raises ValueError where a quote never ends."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands: list[_Command] = []
    words: list[str] = []
    before = ""
    for word in lexer:
        if word in SEPARATORS:
            commands.append(_command(before, words))
            words, before = [], word
        else:
            words.append(word)
    return [*commands, _command(before, words)]


def _command(before: str, words: list[str]) -> _Command:
    redirections: list[str] = []
    plain: list[str] = []
    left = iter(words)
    for word in left:
        if set(word) & set("<>") and set(word) <= set("<>&|"):
            redirections += [word, next(left, "")]
        else:
            plain.append(word)
    program, *arguments = plain or [""]
    if program in WHOLE_WORDS:
        return _Command(before, program, frozenset(), tuple(arguments), tuple(redirections))
    if program in BUNDLE_FIRST and arguments and not arguments[0].startswith("-"):
        arguments[0] = f"-{arguments[0]}"
    flags: set[str] = set()
    operands: list[str] = []
    for place, word in enumerate(arguments):
        if word == "--":
            operands += arguments[place + 1 :]
            break
        if word.startswith("--"):
            flags.add(word)
        elif word.startswith("-") and word != "-":
            # `-la` is a bundle; `-9`, `-n10` and `-d,` hold a value, whose characters are no flags.
            flags |= {f"-{letter}" for letter in word[1:]} if word[1:].isalpha() else {word}
        else:
            operands.append(word)
    return _Command(before, program, frozenset(flags), tuple(operands), tuple(redirections))
