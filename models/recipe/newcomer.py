"""Hand-written newcomer tasks: reads `newcomer/*.txt` and turns a task into a fresh question and answer each time.

A task is a block of lines; blocks are separated by an empty line, lines starting with `#` are comments:

    $ tar -xzf {tgz}                       the command
    > Extracts {tgz} into this folder.     what it does
    - extract a tar.gz archive             an imperative phrase; it is asked for in many wordings
    - unpack {tgz}
    ? what do I do with a .tgz file?       a question used as it is
    + and how do I see what is in it?      a question that only makes sense after the block before it

`{name}` is a slot: a random file, port, host ... each time, so that the model learns to copy what it was given. A slot
the question does not name takes its first, plain value. A block without `$` is answered by its `>` line alone.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from .chat import Conversation, Pair
from .phrasing import ask, roughen

_WORDS = (
    "notes report data main photo config server app test index backup users orders results thesis budget music draft log todo "
    "invoice summary output input sales letter readme project website script recipe diary archive essay slides movie song"
).split()
_NAMES = "alice bob carol dave eve maria john anna tom lisa peter sara deploy admin guest mike".split()
_SLOTS: dict[str, tuple[str, ...]] = {
    "file": ("file.txt",), "file2": ("other.txt",), "dir": ("my-folder",), "dir2": ("backup",),
    "text": ("file.txt",), "log": ("app.log", "server.log", "error.log", "/var/log/syslog", "access.log"),
    "tgz": ("archive.tar.gz",), "tar": ("archive.tar",), "zip": ("archive.zip",), "gz": ("file.gz",),
    "bz2": ("archive.tar.bz2",), "xz": ("archive.tar.xz",), "csv": ("data.csv", "users.csv", "sales.csv", "orders.csv"),
    "json": ("data.json", "config.json", "package.json", "users.json"), "py": ("script.py", "main.py", "app.py", "test.py"),
    "sh": ("script.sh", "run.sh", "install.sh", "backup.sh", "deploy.sh"),
    "word": ("word", "error", "hello", "TODO", "warning", "password", "import", "foo", "timeout", "name"),
    "word2": ("new", "bye", "bar", "done", "fixed", "success"),
    "ext": ("txt", "log", "jpg", "py", "pdf", "csv", "md", "html", "png", "js", "tmp", "mp3"),
    "host": ("example.com", "server", "myserver", "10.0.0.5", "192.168.1.20", "github.com", "web1", "db.example.com"),
    "site": ("example.com", "google.com", "github.com", "wikipedia.org", "mysite.org", "python.org"),
    "url": ("https://example.com/file.zip", "https://example.com", "https://site.org/data.csv", "http://localhost:8000",
            "https://example.org/photo.jpg", "https://example.com/page.html"),
    "repo": ("https://github.com/user/repo.git", "https://github.com/torvalds/linux.git", "git@github.com:me/project.git"),
    "ip": ("192.168.1.10", "10.0.0.5", "8.8.8.8", "192.168.0.1", "172.16.0.3"),
    "user": ("alice",), "group": ("developers", "docker", "www-data", "staff", "admins"),
    "branch": ("my-branch", "feature", "fix-login", "develop", "new-ui", "experiment", "bugfix", "test"),
    "tag": ("v1.0", "v2.1.0", "1.2.3", "release-5"),
    "pkg": ("package", "requests", "numpy", "flask", "pandas", "django"), "apt": ("package", "curl", "nginx", "git", "vim",
            "htop", "firefox", "python3", "ffmpeg", "vlc"),
    "npm": ("package", "react", "express", "lodash", "typescript"),
    "proc": ("firefox", "chrome", "python", "nginx", "node", "java", "spotify", "code"),
    "service": ("nginx", "ssh", "docker", "apache2", "mysql", "postgresql", "redis"),
    "container": ("my-container", "web", "db", "redis", "app"), "image": ("nginx", "ubuntu", "redis", "postgres", "my-image"),
    "pod": ("my-pod", "web-0", "api"), "db": ("mydb", "shop", "users", "blog"), "session": ("work", "main", "dev", "0"),
    "video": ("video.mp4", "movie.mkv", "clip.avi", "holiday.mov"), "audio": ("song.mp3", "audio.wav", "track.flac"),
    "img": ("photo.jpg", "picture.png", "image.png", "logo.png"), "pdf": ("document.pdf", "report.pdf", "book.pdf"),
    "iso": ("image.iso", "ubuntu.iso", "debian.iso"), "disk": ("/dev/sdb1", "/dev/sdc1", "/dev/nvme1n1p1"),
    "mnt": ("/mnt", "/mnt/usb", "/media/disk"), "tool": ("command", "grep", "tar", "ls", "find", "awk", "ssh", "python"),
    "var": ("NAME", "EDITOR", "API_KEY", "PATH_TO_DATA", "DEBUG"), "hash": ("abc1234", "9fceb02", "d4e5f6a", "1a2b3c4"),
    "path": ("path/to/folder", "/home/user", "/var/log", "~/Documents", "/etc", "src", "/tmp", "~/Downloads"),
}  # fmt: skip
_RANGES = {"n": (10, 2, 50), "m": (5, 2, 30), "port": (8080, 1024, 65535), "pid": (1234, 100, 65000), "size": (100, 10, 900),
           "days": (7, 2, 90), "secs": (5, 2, 60)}  # fmt: skip
_EXTENSIONS = ("txt", "md", "csv", "log", "py", "json", "html", "pdf", "jpg", "sh", "conf", "docx")


@dataclass(frozen=True, slots=True)
class Task:
    """One block of a newcomer file. `followups` are questions asked after `previous`, the task before it."""

    answer: str
    phrases: tuple[str, ...]
    questions: tuple[str, ...]
    followups: tuple[str, ...]
    previous: "Task | None"

    def sample(self, rng: random.Random) -> Conversation:
        """A new conversation about this task; its last pair is the task's own."""
        if self.previous and self.followups and rng.random() < 0.4:
            values = _draw(rng)
            first, answer = _fill(rng, self.previous._question(rng, False), self.previous.answer, values)
            question, second = _fill(rng, rng.choice(self.followups), self.answer, values, mentioned=first)
            return Conversation((Pair(first, answer), Pair(roughen(rng, question), second)))
        question, answer = _fill(rng, self._question(rng, True), self.answer, _draw(rng))
        return Conversation((Pair(question, answer),))

    def _question(self, rng: random.Random, rough: bool) -> str:
        pool = len(self.phrases) + len(self.questions)
        i = rng.randrange(pool)
        if i < len(self.phrases):
            return ask(rng, self.phrases[i])
        question = self.questions[i - len(self.phrases)]
        return roughen(rng, question) if rough and "{" not in question else question


def read_tasks(folder: Path) -> list[Task]:
    """All tasks of `folder`/*.txt. Raises ValueError naming the file and block that is malformed."""
    tasks: list[Task] = []
    for path in sorted(folder.glob("*.txt")):
        previous: Task | None = None
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
        for block in re.split(r"\n\s*\n", text.strip()):
            lines: dict[str, list[str]] = {"$": [], ">": [], "-": [], "?": [], "+": []}
            for line in block.splitlines():
                if line[:2] not in ("$ ", "> ", "- ", "? ", "+ "):
                    raise ValueError(f"{path.name}: line {line!r} must start with '$ ', '> ', '- ', '? ' or '+ '")
                lines[line[0]].append(line[2:].strip())
            if not lines[">"] or not (lines["-"] or lines["?"]):
                raise ValueError(f"{path.name}: block {block[:60]!r} needs a '>' line and a '-' or '?' line")
            answer = " ".join(lines[">"])
            if lines["$"]:
                answer = f"`{lines['$'][0]}`\n\n{answer}"
            previous = Task(answer, tuple(lines["-"]), tuple(lines["?"]), tuple(lines["+"]), previous)
            tasks.append(previous)
    return tasks


def _draw(rng: random.Random) -> dict[str, str]:
    """A random value for every slot."""
    values = {name: rng.choice(options) for name, options in _SLOTS.items()}
    for name, (_, low, high) in _RANGES.items():
        values[name] = str(rng.randint(low, high))
    values["port"] = rng.choice(("8080", "3000", "80", "5432", "22", "443", "8000", "5000", "3306", values["port"]))
    names = rng.sample(_WORDS, 6)
    values["file"] = f"{names[0]}.{rng.choice(_EXTENSIONS)}"
    values["file2"] = f"{names[1]}.{rng.choice(_EXTENSIONS)}"
    values["text"] = f"{names[0]}.{rng.choice(('txt', 'md', 'log', 'csv', 'conf'))}"
    values["dir"], values["dir2"] = names[2], names[3]
    for name, ending in (("tgz", "tar.gz"), ("tar", "tar"), ("zip", "zip"), ("gz", "gz"), ("bz2", "tar.bz2"), ("xz", "tar.xz")):
        values[name] = f"{names[4]}.{ending}"
    values["user"] = rng.choice(_NAMES)
    return values


def _fill(
    rng: random.Random, question: str, answer: str, values: dict[str, str], mentioned: str = ""
) -> tuple[str, str]:
    """Both texts with their slots filled; what the question (or the turn before it) does not name stays plain."""
    used = set(re.findall(r"{(\w+)}", question))

    def plain(match: re.Match[str]) -> str:
        name = match[1]
        if name in used or (mentioned and values.get(name, "\0") in mentioned):
            return values[name]
        if name in _RANGES:
            return str(_RANGES[name][0])
        return _SLOTS[name][0] if name in _SLOTS else match[0]

    def named(match: re.Match[str]) -> str:
        return values.get(match[1], match[0])

    return re.sub(r"{(\w+)}", named, question), re.sub(r"{(\w+)}", plain, answer)
