"""The training mixture: command pages and hand-written tasks as conversations; held-out pages never.

Knows where examples come from and how often each kind is drawn; not how they are tokenized. Everything is
drawn from one `random.Random`, so a seed gives the same stream again.
"""

import gzip
import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .chat import Conversation, Pair
from .naming import name_it
from .newcomer import Task, any_name, read_tasks, weight
from .phrasing import as_sentence, ask, chatter, roughen, telegram
from .safety import is_dangerous, is_destructive

HELD_OUT_SHARE = 40  # one page in 40
CHATTER_SHARE, TELEGRAM_SHARE = 0.12, 0.08
NAMED_SHARE, EXPLAIN_SHARE = (
    0.6,
    0.06,
)  # of the page examples: with a name where one fits; asked by their command
UNKNOWN_SHARE = 0.25  # of the questions about what a tool is: there is none of that name
RARE_WEIGHT = 0.6  # against 3 to 10 for a row of a common tool
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that answers command-line questions.",
    "You are a Linux expert.",
    "Answer briefly.",
    "You help people with the command line.",
    "You are a concise assistant. Reply with one command.",
)
_CORE_TOOLS = (
    "ls cd cp mv rm mkdir rmdir pwd cat less head tail grep find sed awk sort uniq wc cut tr tee xargs "
    "tar zip unzip gzip chmod chown ps top htop kill killall pkill df du free ssh scp rsync sftp ssh- "
    "keygen ssh-copy-id curl wget ping ip ss netstat dig nslookup lsof git docker systemctl journalctl "
    "apt pip python npm tmux screen man which whereis history alias echo date cal touch ln stat file diff "
    "comm watch uptime uname hostname whoami who id su sudo passwd useradd usermod groups crontab nohup "
    "jobs bg fg sleep time env export source lsblk mount umount dd lscpu lsusb free vmstat split seq nc "
    "nmap traceroute ffmpeg jq sqlite3 psql mysql make gcc vim nano md5sum sha256sum base64 openssl "
    "kubectl brew dnf pacman tree locate basename dirname realpath readlink shutdown reboot "
)
_CORE = frozenset(_CORE_TOOLS.split())
_SKIP = re.compile(r"^(<|tldr |\{|~|some|your|any_|my_?prog|prog)|path/to/executable_file|foo\b|bozo|asdf")


_ABOUT_ITSELF = re.compile(
    r"^(display|show|print|list|view|get)\b.{0,20}\b(help|version|documentation)\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Row:
    """One example of a command page. `head`: 3 very common tool, 2 common, 1 rare."""

    source: str
    page: str
    tool: str
    description: str
    command: str
    head: int


@dataclass(frozen=True, slots=True)
class Definition:
    """What a tool is, from the top of its page."""

    page: str
    tool: str
    text: str
    head: int


def is_held_out(page: str) -> bool:
    """Whether a page is kept for scoring. Pages of one base name on several platforms go together."""
    name = page.split("/", 1)[-1]
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def read_rows(data: Path) -> list[Row]:
    """All usable rows of `data`/command_examples.jsonl.gz, held-out ones included, cleaned."""
    rows = []
    for raw in _read(data / "command_examples.jsonl.gz"):
        description, command = _clean(raw["desc"]), raw["cmd"].strip()
        usable = 3 < len(description) <= 130 and len(command) <= 110 and not re.search(r"[`\n]", command)
        if not usable or raw["platform"] not in ("common", "linux", "osx") or _SKIP.search(command):
            continue
        imperative = re.match(r"[A-Z][a-z]*[a-rt-z] ", description)  # not "Finds", "Prints"
        if raw["src"] == "nl2bash" and (len(command) > 70 or not imperative):
            continue
        if is_dangerous(raw["desc"], f"`{command}`"):
            continue
        rows.append(Row(raw["src"], raw["page"], raw["tool"], description, command, raw["head"]))
    return rows


def read_definitions(data: Path, heads: dict[str, int]) -> list[Definition]:
    """Definitions of at most 140 characters; `heads` maps a tool to its rows' `head`."""
    definitions = []
    for raw in _read(data / "command_definitions.jsonl.gz"):
        text = _clean(raw["definition"].split(" See also")[0].split(" More information")[0])
        if raw["platform"] in ("common", "linux", "osx") and 8 < len(text) <= 140 and "alias of" not in text:
            definitions.append(Definition(raw["page"], raw["tool"], text, heads.get(raw["tool"], 1)))
    return definitions


def answer_for(row: Row, verbs: frozenset[str]) -> str:
    """The answer to any question about a row, with a warning where the command can lose data."""
    warning = " Careful: this cannot be undone." if is_destructive(row.command) else ""
    return f"`{row.command}`\n\n{as_sentence(row.description, verbs)}{warning}"


class Corpus:
    """Draws training conversations.

    Args:
        data: folder with the two command files.
        newcomer: folder with the hand-written tasks.
        newcomer_share: share of the draws that are hand-written tasks.
    """

    def __init__(self, data: Path, newcomer: Path, newcomer_share: float = 0.5) -> None:
        rows = read_rows(data)
        self.verbs = frozenset(row.description.split()[0].lower() for row in rows if row.source == "tldr")
        heads = {row.tool: row.head for row in rows}
        definitions = read_definitions(data, heads)
        tools = [*(row.tool for row in rows), *(definition.tool for definition in definitions)]
        self._tools = {word for tool in tools for word in (tool, *tool.split())}
        self.held_out = [row for row in rows if is_held_out(row.page)]
        self.rows = [row for row in rows if not is_held_out(row.page)]
        self.definitions = [d for d in definitions if not is_held_out(d.page)]
        self.tasks: list[Task] = read_tasks(newcomer)
        words = (w for row in self.rows for w in re.findall(r"\b[a-z]{3,12}\b", row.description))
        self.vocabulary = sorted(set(words))
        self._task_weights = _cumulative([weight(task) for task in self.tasks])
        self._row_weights = _cumulative([_row_weight(row) for row in self.rows])
        self._definition_weights = _cumulative([{3: 8.0, 2: 2.0, 1: 0.5}[d.head] for d in self.definitions])
        self._newcomer_share = newcomer_share

    def sample(self, rng: random.Random) -> Conversation:
        """One conversation of the mixture: mostly one pair, sometimes two, sometimes under a system text."""
        pairs = self._one(rng).pairs
        pairs = (*pairs[:-1], Pair(_in_other_words(rng, pairs[-1].question), pairs[-1].answer))
        if len(pairs) == 1 and rng.random() < 0.08:
            pairs = (*self._one(rng).pairs, *pairs)
        system = rng.choice(SYSTEMS) if rng.random() < 0.12 else ""
        return Conversation(pairs, system)

    def sample_long(self, rng: random.Random, pairs: int) -> Conversation:
        """A conversation of many turns, so that long prompts are not foreign to the model."""
        turns: list[Pair] = []
        while len(turns) < pairs:
            turns.extend(self._one(rng).pairs)
        return Conversation(tuple(turns), rng.choice(("", *SYSTEMS)))

    def _one(self, rng: random.Random) -> Conversation:
        if rng.random() < self._newcomer_share and self.tasks:
            return rng.choices(self.tasks, cum_weights=self._task_weights)[0].sample(rng, self.vocabulary)
        if rng.random() < 0.12:
            if rng.random() < UNKNOWN_SHARE:
                return Conversation((self._unknown_pair(rng),))
            definition = rng.choices(self.definitions, cum_weights=self._definition_weights)[0]
            return Conversation((_definition_pair(rng, definition),))
        row = rng.choices(self.rows, cum_weights=self._row_weights)[0]
        return Conversation((self._row_pair(rng, row),))

    def _unknown_pair(self, rng: random.Random) -> Pair:
        """What a tool is that there is none of: it is told so, since a definition could only be made up."""
        name = any_name(rng, self.vocabulary)
        while name in self._tools:
            name = any_name(rng, self.vocabulary)
        question = roughen(rng, rng.choice(_DEFINE).format("{name}"))  # whose slots keep their letters
        return Pair(question.replace("{name}", name), UNKNOWN.format(name))

    def _row_pair(self, rng: random.Random, row: Row) -> Pair:
        name = ""
        if row.source == "tldr" and rng.random() < NAMED_SHARE:
            named = name_it(rng, row.description, row.command, any_name(rng, self.vocabulary))
            if named:
                row, name = replace(row, description=named.description, command=named.command), named.value
        answer = answer_for(row, self.verbs).replace("{name}", name)
        if rng.random() < EXPLAIN_SHARE:
            return Pair(rng.choice(_EXPLAIN)(row.command), answer)
        # A rare tool can't be guessed from a task: asking without its name would only teach to guess.
        guessable = _is_core(row.tool) and not _ABOUT_ITSELF.search(row.description)
        with_tool = row.source == "tldr" and rng.random() < (0.4 if guessable else 0.9)
        question = ask(rng, _as_question(rng, row.description), row.tool if with_tool else None)
        return Pair(question.replace("{name}", name), answer)


def _in_other_words(rng: random.Random, question: str) -> str:
    """The question as it is, mostly; sometimes with idle words around it or without little words."""
    if "`" in question or question.count(" ") < 2:
        return question
    if rng.random() < TELEGRAM_SHARE:
        question = telegram(rng, question)
    return chatter(rng, question) if rng.random() < CHATTER_SHARE else question


_EXPLAIN: tuple[Callable[[str], str], ...] = (
    lambda c: f"what does `{c}` do?",
    lambda c: f"explain `{c}`",
    lambda c: f"what does {c} do?",
    lambda c: f"what does the command {c} mean?",
)
UNKNOWN = "I know no command called {}. Ask me, for example, how to find a file or undo a commit."
_DEFINE = (
    "what is {}?",
    "what does {} do?",
    "what's {}?",
    "explain {}",
    "what is the {} command?",
    "what is {} used for?",
    "tell me about {}",
    "what is {} for?",
    "{}?",
    "when would I use {}?",
)


def _definition_pair(rng: random.Random, definition: Definition) -> Pair:
    return Pair(roughen(rng, rng.choice(_DEFINE).format(definition.tool)), definition_text(definition))


def definition_text(definition: Definition) -> str:
    """The answer to what a tool is."""
    text = definition.text if definition.text.endswith(".") else definition.text + "."
    return f"`{definition.tool}`\n\n{text}"


def _row_weight(row: Row) -> float:
    if row.source == "gittips":
        return 3.0
    if row.source == "nl2bash":
        return 0.6
    core = _is_core(row.tool)
    share = {3: 10.0 if core else 3.0, 2: 3.0 if core else 1.5, 1: RARE_WEIGHT}[row.head]
    return 0.15 * share if _ABOUT_ITSELF.search(row.description) else share


def _is_core(tool: str) -> bool:
    return tool.split()[0] in _CORE


def _as_question(rng: random.Random, description: str) -> str:
    """A description as someone would put it: without asides, full stop and quotes."""
    text = re.sub(r"\s*\([^)]*\)", "", description).rstrip(".") or description
    return text.replace("`", "") if rng.random() < 0.8 else text


def _clean(text: str) -> str:
    text = re.sub(r"\s*\((see|by default|see also|press|use)[^)]*\)", "", text, flags=re.IGNORECASE)
    text = re.sub(r"\s*<https?:[^>]*>", "", text)
    text = re.sub(r"\[(\w{1,3})\]", r"\1", text)  # mnemonics: "[c]reate"
    text = re.sub(r"\s*\[[^\]]*[/|][^\]]*\]", "", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(":").strip()


def _read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _cumulative(weights: list[float]) -> list[float]:
    total, sums = 0.0, []
    for one in weights:
        total += one
        sums.append(total)
    return sums
