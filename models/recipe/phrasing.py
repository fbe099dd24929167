"""How people ask for things: turns one imperative phrase into the many ways a person would type it.

Knows English surface forms only; nothing of commands, files or models. All choices come from the caller's
`random.Random`.
"""

import random
import re

_WRAPPERS = (
    ("how do I {}?", 10),
    ("how can I {}?", 6),
    ("how to {}", 8),
    ("{}", 14),
    ("command to {}", 4),
    ("I want to {}", 4),
    ("what is the command to {}?", 4),
    ("what's the command to {}?", 3),
    ("please {}", 1),
    ("help me {}", 2),
    ("show me how to {}", 2),
    ("can you tell me how to {}?", 1),
    ("what's the best way to {}?", 1),
    ("how would I {}?", 2),
    ("is there a way to {}?", 2),
    ("{} in linux", 1),
    ("{} from the command line", 1),
    ("linux command to {}", 2),
    ("I need to {}", 4),
    ("way to {}", 1),
    ("trying to {}", 1),
    ("which command can {}?", 1),
    ("how do you {}?", 3),
    ("How do I {}?", 6),
    ("How can I {}?", 3),
    ("How to {}?", 3),
    ("hi, how do I {}?", 1),
    ("how do I {} in the terminal?", 2),
    ("what should I type to {}?", 1),
    ("I'd like to {}", 1),
    ("can I {}?", 1),
    ("tell me how to {}", 1),
)
_TOOL_WRAPPERS = (
    ("how do I {} with {tool}?", 6),
    ("how do I use {tool} to {}?", 5),
    ("{} with {tool}", 5),
    ("{} using {tool}", 5),
    ("use {tool} to {}", 3),
    ("{tool}: {}", 4),
    ("{tool} {}", 4),
    ("{tool} command to {}", 2),
    ("how can I {} with {tool}?", 3),
)
_SYNONYMS = {
    "show": ("display", "print", "see", "view", "list"),
    "display": ("show", "print", "see", "view"),
    "print": ("show", "display", "output", "see"),
    "list": ("show", "display", "see", "view"),
    "remove": ("delete", "get rid of"),
    "delete": ("remove",),
    "create": ("make", "generate"),
    "directory": ("folder", "dir"),
    "directories": ("folders", "dirs"),
    "folder": ("directory", "dir"),
    "find": ("search for", "look for", "locate"),
    "search": ("look",),
    "start": ("launch", "run"),
    "run": ("execute", "start"),
    "execute": ("run",),
    "compress": ("pack",),
    "extract": ("unpack", "decompress"),
    "install": ("add",),
    "change": ("modify", "set"),
    "terminate": ("kill", "stop"),
    "specified": ("given", "particular"),
    "multiple": ("several", "many"),
    "big": ("large", "huge"),
    "large": ("big", "huge"),
    "biggest": ("largest",),
    "largest": ("biggest",),
    "fast": ("quickly",),
    "copy": ("duplicate",),
    "rename": ("change the name of",),
    "edit": ("change", "modify"),
    "check": ("see", "find out", "look up"),
    "stop": ("end", "halt", "quit"),
    "kill": ("stop", "end", "terminate"),
    "quit": ("exit", "leave"),
    "exit": ("quit", "leave"),
    "download": ("fetch", "get"),
    "connect": ("log in", "get in"),
    "machine": ("computer", "box"),
    "computer": ("machine", "pc"),
    "server": ("machine", "host"),
    "program": ("app", "process", "application"),
    "process": ("program", "task"),
    "app": ("program", "application"),
    "text": ("words",),
    "word": ("string", "term"),
    "line": ("row",),
    "lines": ("rows",),
    "row": ("line",),
    "first": ("top",),
    "count": ("number of", "count up"),
    "newest": ("latest", "most recent"),
    "latest": ("newest", "most recent"),
    "oldest": ("earliest",),
    "mistake": ("error",),
    "undo": ("revert", "take back"),
    "watch": ("follow", "monitor"),
    "follow": ("watch",),
    "save": ("store", "keep"),
    "update": ("upgrade",),
    "file": ("document",),
    "picture": ("image", "photo"),
    "photo": ("picture", "image"),
    "disk": ("drive",),
    "drive": ("disk",),
    "empty": ("blank",),
}
_BEFORE = (
    "hey, ", "hi, ", "hello, ", "hi! ", "ok, ", "so ", "so, ", "quick question: ", "question: ", "sorry, ", "um, ",
    "excuse me, ", "please help, ", "help! ", "I'm new to this, ", "I am new to linux. ", "beginner here: ", "on ubuntu, ",
    "in bash, ", "on my mac, ", "on the server, ", "in my terminal: ", "one more thing, ", "and ", "now ", "also, ",
    "stupid question, ", "I forgot: ", "I can't remember: ", "at work: ", "real quick, ", "I have a problem. ", "well, ",
    "could you tell me, ", "do you know ", "any idea ", "linux: ", "bash: ", "just wondering, ", "my boss asks: ",
)  # fmt: skip
_AFTER = (
    " please", ", please", " please?", ", thanks", " thanks!", "? thanks", "? I'm new to this", "? I forgot", " again?",
    " on linux?", " on ubuntu", " on a mac?", " in the terminal?", " from the terminal", " in bash", " on the command line?",
    "? need it quickly", " for me", ", any idea?", ", how?", " - how?", ", what do I type?", ", which command?", " somehow",
    "? help", " right now", ", what's the command?", " on my machine", " on a server", "? I have no idea",
)  # fmt: skip
_LITTLE_WORDS = "a an the my me i i'd i'm do does is are to of in on it this that there please can could you how some want"
_LITTLE = frozenset(_LITTLE_WORDS.split())
_TOOL_WORDS = "git docker apt apt-get npm pip kubectl systemctl brew cargo podman dnf pacman yarn ip tmux screen gh snap"
_TOOLS = frozenset(_TOOL_WORDS.split())
_IRREGULAR = {"do": "does", "go": "goes", "be": "is", "have": "has"}
_NOT_VERB_WORDS = "all only also then the a an both each in on by with for if from to not interactively"
_NOT_VERBS = frozenset(_NOT_VERB_WORDS.split())
_AFTER_VERB_WORDS = "a an the it its them all to their each every any only files lines"
_AFTER_VERB = frozenset(_AFTER_VERB_WORDS.split())


def third_person(verb: str) -> str:
    """`copy` -> `copies`, `push` -> `pushes`, `show` -> `shows`."""
    lower = verb.lower()
    if lower in _IRREGULAR:
        return _IRREGULAR[lower]
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    if re.search(r"(s|x|z|ch|sh)$", verb):
        return verb + "es"
    return verb + "s"


def as_sentence(phrase: str, verbs: frozenset[str]) -> str:
    """An imperative phrase as a statement: "Build an image and tag it" -> "Builds an image and tags it.".

    `verbs`: lower-case verbs that may follow "and" or "or" and are then inflected too.
    """
    words = phrase.split()
    first = 1 if len(words) > 1 and (words[0].lower().endswith("ly") or words[0].lower() in _NOT_VERBS) else 0
    if re.fullmatch(r"[A-Za-z]+", words[first]) and words[first].lower() not in _NOT_VERBS:
        words[first] = third_person(words[first])
        for i in range(first + 1, len(words) - 2):
            joined = words[i].lower() in ("and", "or", "then")
            if joined and words[i + 1] in verbs and words[i + 2].lower() in _AFTER_VERB:
                words[i + 1] = third_person(words[i + 1])
    text = " ".join(words)
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def ask(rng: random.Random, phrase: str, tool: str | None = None) -> str:
    """One way to ask for `phrase` (imperative, no full stop); names `tool` if there is one."""
    phrase = _synonyms(rng, phrase.strip())
    if phrase[:2].upper() != phrase[:2]:  # keep "DNS records" as it is
        phrase = phrase[0].lower() + phrase[1:]
    wrappers = _TOOL_WRAPPERS if tool else _WRAPPERS
    wrapper = rng.choices([w for w, _ in wrappers], [n for _, n in wrappers])[0]
    return roughen(rng, wrapper.replace("{tool}", tool or "").replace("{}", phrase))


def roughen(rng: random.Random, question: str) -> str:
    """The same question in a hurry: case, question mark and now and then a letter go missing."""
    if rng.random() < 0.25:
        question = question[0].upper() + question[1:]
    elif rng.random() < 0.3:
        question = question.lower() if not re.search(r"[{}\-.]", question) else question
    if question.endswith("?") and rng.random() < 0.4:
        question = question[:-1]
    elif not question.endswith(("?", ".")) and rng.random() < 0.1:
        question += rng.choice((".", "?"))
    if len(question) > 20 and rng.random() < 0.03:
        i = rng.randrange(2, len(question) - 2)
        in_slot = question.rfind("{", 0, i) > question.rfind("}", 0, i)
        if question[i - 1 : i + 2].isalpha() and not in_slot:
            question = question[:i] + rng.choice(("", question[i + 1] + question[i])) + question[i + 1 :]
    return question


def chatter(rng: random.Random, question: str) -> str:
    """The same question with a few words around it that change nothing."""
    if rng.random() < 0.6:
        before = rng.choice(_BEFORE)
        plain = question[:2].upper() == question[:2]  # "I ...", "DNS ..."
        return before + (question if plain else question[0].lower() + question[1:])
    return question.rstrip("?.") + rng.choice(_AFTER)


def telegram(rng: random.Random, question: str) -> str:
    """The same question without most of its little words, as people type into a search box."""
    words = [w for w in question.split(" ") if w.lower() not in _LITTLE or rng.random() < 0.25]
    return " ".join(words) if len(words) > 2 else question


def swap_words(rng: random.Random, question: str) -> str:
    """The same question with a synonym here and there; the words after a tool's name stay as they are."""
    words = question.split(" ")
    for i, word in enumerate(words):
        after_tool = i > 0 and words[i - 1].lower() in _TOOLS
        options = () if after_tool else _SYNONYMS.get(word.lower(), ())
        if options and rng.random() < 0.35:
            words[i] = rng.choice(options)
    return " ".join(words)


def _synonyms(rng: random.Random, phrase: str) -> str:
    if rng.random() < 0.5:
        return phrase
    words = phrase.split(" ")
    for i, word in enumerate(words):
        options = _SYNONYMS.get(word.lower())
        if options and rng.random() < 0.5:
            words[i] = rng.choice(options)
    return " ".join(words)
