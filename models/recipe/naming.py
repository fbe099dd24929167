"""Gives the placeholder of a command page a name: "Compress a file", `gzip path/to/file` -> "compress the file
notes.txt", `gzip notes.txt`.

Pages teach thousands of commands but hardly any copying, because their descriptions name nothing. With a new name each
time, what the question gives has to be copied into the command. Only a command with one placeholder of a kind, whose
noun the description says once, is named; all others stay as they are.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A placeholder in commands, the noun for it in descriptions, and how to draw a value.

    `placeholder` may hold a group "ending", which is kept."""

    noun: str
    placeholder: re.Pattern[str]
    draw: Callable[[random.Random, str], str]


def _as_it_is(rng: random.Random, word: str) -> str:
    return word


def _host(rng: random.Random, word: str) -> str:
    kind = rng.random()
    if kind < 0.4:
        return ".".join(str(rng.randint(1, 254)) for _ in range(4))
    return word + rng.choice((".com", ".org", ".local", "", "1", "2", ".net", ".io"))


def _number(low: int, high: int) -> Callable[[random.Random, str], str]:
    return lambda rng, word: str(rng.randint(low, high))


def _path(rng: random.Random, word: str) -> str:
    return rng.choice(("", "", "", "~/", "/tmp/", "/home/", "src/", "/var/", "../")) + word


def _version(rng: random.Random, word: str) -> str:
    return f"v{rng.randint(0, 9)}.{rng.randint(0, 20)}" if rng.random() < 0.7 else word


def _kind(noun: str, placeholder: str, draw: Callable[[random.Random, str], str] = _as_it_is) -> Kind:
    return Kind(noun, re.compile(rf"(?<![\w/.-]){placeholder}(?![\w/=.-])"), draw)


_KINDS = (
    _kind("(?:directory|folder)", r"path/to/(?:directory|folder)", _path),
    _kind(
        "(?:text |input |log |image |PDF |video |audio |JSON |CSV )?file",
        r"path/to/(?:input_)?(?:file|input)(?P<ending>\.\w+)?",
    ),
    _kind("(?:script|source file|program)", r"path/to/(?:script|source|program)(?P<ending>\.\w+)"),
    _kind("image", r"path/to/(?:input_)?image(?P<ending>\.\w+)"),
    _kind(
        "(?:archive|zip file|zip archive)",
        r"path/to/(?:file|archive)(?P<ending>\.(?:zip|tar|tar\.gz|tgz|gz|7z|rar|xz|bz2))",
    ),
    _kind("package", r"(?:package_name|package)"),
    _kind("branch", r"(?:branch_name|branch)"),
    _kind("container", r"(?:container_name|container)"),
    _kind("image", r"(?:image_name|image)"),
    _kind("(?:service|unit)", r"(?:service_name|service|unit)"),
    _kind("database", r"(?:database_name|database)"),
    _kind("table", r"(?:table_name|table)"),
    _kind("user", r"(?:username|user_name|user)"),
    _kind("group", r"(?:group_name|group)"),
    _kind(
        "(?:host|server|remote host|domain)",
        r"(?:hostname|host|remote_host|server|domain|domain_name|ip_address)",
        _host,
    ),
    _kind("process", r"(?:process_name|process|program)"),
    _kind("process", r"(?:pid|process_id)", _number(2, 65000)),
    _kind("port", r"(?:port|port_number)", _number(20, 65000)),
    _kind("project", r"(?:project_name|project)"),
    _kind("session", r"(?:session_name|session)"),
    _kind("tag", r"(?:tag_name|tag)", _version),
    _kind("(?:string|pattern|text)", r"(?:search_pattern|search_string|pattern|string)"),
    _kind("command", r"command"),
    _kind("module", r"(?:module_name|module)"),
    _kind("(?:app|application)", r"(?:app_name|application)"),
    _kind("cluster", r"(?:cluster_name|cluster)"),
    _kind("pod", r"(?:pod_name|pod)"),
    _kind("remote", r"(?:remote_name|remote)"),
    _kind("job", r"(?:job_id|job_name|job)"),
    _kind(
        "URL",
        r"(?:url|repository_url|repo_url|https?://example\.com\S*)",
        lambda rng, w: f"https://{w}.{rng.choice(('com', 'org'))}",
    ),
)
# The whole of a noun phrase, and nothing of a longer one ("a PBM image", "the package phase").
_BEFORE = (
    r"(?:(?:(?:a|an|the|this)\s+)?(?:specific|given|specified|particular)|a|an|the|this|another"
    r"|a\s+(?:new|single|local|remote|running))"
)
_AFTER = r"(?=$|[.,]| (?:in|on|to|from|with|and|for|by|at|as|into|using|without|inside|that|if|when|through|via)\b)"


@dataclass(frozen=True, slots=True)
class Named:
    """A description with `{name}` where the value goes, the value, and the command with it."""

    description: str
    value: str
    command: str


def name_it(rng: random.Random, description: str, command: str, word: str) -> Named | None:
    """Names the one placeholder of a page's example after `word`; None where there is none to be sure of."""
    fitting = []
    for kind in _KINDS:
        if len(kind.placeholder.findall(command)) == 1:
            nouns = list(re.finditer(rf"\b{_BEFORE}\s+({kind.noun})\b{_AFTER}", description, re.IGNORECASE))
            if len(nouns) == 1 and nouns[0].start() > 0:  # the first word is the verb
                fitting.append((kind, nouns[0]))
    if not fitting:
        return None
    kind, noun = rng.choice(fitting)
    place = kind.placeholder.search(command)
    assert place is not None
    value = kind.draw(rng, word)
    if "ending" in kind.placeholder.groupindex:
        value += place["ending"] or rng.choice((".txt", ".md", ".log", ".csv", ".conf", ""))
    said = rng.choice(
        (f"the {noun[1]} {{name}}", f"{noun[1]} {{name}}", "{name}", "{name}", f"the {{name}} {noun[1]}")
    )
    named = f"{description[: noun.start()]}{said}{description[noun.end() :]}"
    return Named(named, value, command[: place.start()] + value + command[place.end() :])
