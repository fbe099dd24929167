"""Pairs of questions close in words: paraphrases, whose answers mostly agree, and swaps, whose answers mostly do not.

Made by rules from tasks written by hand, the same ones every time. A kind names what was changed.
"""

import itertools
import random
from typing import NamedTuple


class Pair(NamedTuple):
    first: str
    second: str
    kind: str


TASKS = """
extract a tar.gz archive
create a tar archive
list all running processes
show the size of a directory
find files larger than 100 MB
count the lines in a file
show the first 10 lines of a file
show the last 20 lines of a file
follow the end of a log file
search for a word in a file
search for a text in all files of a folder
replace a word in a file
sort the lines of a file
remove duplicate lines from a file
compare two files
rename a file
copy a folder
move a file to another folder
delete an empty folder
create a new folder
create a symbolic link
change the owner of a file
make a script executable
show the permissions of a file
show my current directory
show the disk usage
show free memory
show the kernel version
show my ip address
list open ports
test whether a host is reachable
download a file from a url
upload a file with curl
copy a file to a remote server
connect to a server with ssh
generate an ssh key
kill a process by its name
kill a process by its id
run a command in the background
schedule a job every day
show environment variables
set an environment variable
list installed packages
install a package with apt
update all packages with apt
remove a package with apt
install a python package
create a python virtual environment
clone a git repository
create a git branch
switch to another git branch
delete a local git branch
undo the last git commit
show the git history
show what has changed in git
add all changes to git
push a branch to a remote
pull the latest changes with git
merge a git branch
stash my changes in git
list docker containers
stop a docker container
remove a docker image
run a docker container in the background
show the logs of a docker container
build a docker image
convert an image to png
resize an image
convert a video to mp4
extract the audio of a video
compress a folder into a zip file
unzip a file
list the contents of a zip file
encrypt a file with gpg
decrypt a file with gpg
compute the sha256 checksum of a file
split a large file into parts
join lines of two files
print the second column of a file
print lines that match a pattern
format a json file
show the manual of a command
find out where a command is installed
show the calendar
show the date and time
shut down the computer
restart a service with systemctl
show the status of a service
list all users
add a new user
change my password
mount a usb drive
unmount a drive
list block devices
watch a command every 2 seconds
measure how long a command takes
show the history of commands
clear the terminal
""".strip().splitlines()

FRAMES = (
    "how do I {}?",
    "how can I {}?",
    "how to {}",
    "{}",
    "what is the command to {}?",
    "please tell me how to {}",
    "how would I {}?",
    "I want to {}",
    "command to {}",
    "which command do I use to {}?",
    "Could you show me how to {}?",
    "what's the best way to {}?",
)
SYNONYMS = (
    ("folder", "directory"),
    ("show", "display"),
    ("list", "show"),
    ("delete", "remove"),
    ("create", "make"),
    ("a file", "some file"),
    ("find", "locate"),
    ("stop", "halt"),
    ("all", "all the"),
    ("lines", "rows"),
)
SWAPS = (
    ("number", (("10", "50"), ("20", "5"), ("100", "500"), ("2 seconds", "30 seconds"), ("first", "second"))),
    ("unit", (("MB", "GB"), ("MB", "KB"), ("seconds", "minutes"), ("every day", "every week"))),
    (
        "negation",
        (
            ("that match", "that do not match"),
            ("find files", "find files not"),
            ("list all", "do not list all"),
            ("show", "don't show"),
        ),
    ),
    (
        "antonym",
        (
            ("extract", "create"),
            ("encrypt", "decrypt"),
            ("first", "last"),
            ("larger", "smaller"),
            ("install", "uninstall"),
            ("add", "remove"),
            ("push", "pull"),
            ("mount", "unmount"),
            ("stop", "start"),
            ("upload", "download"),
            ("create", "delete"),
            ("unzip", "zip"),
            ("empty", "full"),
            ("local", "remote"),
            ("split", "join"),
        ),
    ),
    (
        "entity",
        (
            ("png", "jpg"),
            ("mp4", "avi"),
            ("docker", "podman"),
            ("apt", "dnf"),
            ("git", "svn"),
            ("gpg", "openssl"),
            ("zip", "rar"),
            ("sha256", "md5"),
            ("json", "xml"),
            ("ssh", "telnet"),
            ("python", "ruby"),
            ("tar.gz", "tar.xz"),
        ),
    ),
)
DIRECTIONS = (
    ("convert", ("png", "jpg", "gif", "webp", "pdf", "svg"), "convert a {} to a {}"),
    ("copy", ("home", "tmp", "backup", "usb", "docs", "work"), "copy files from {} to {}"),
    ("merge", ("main", "develop", "feature", "release", "hotfix"), "merge branch {} into {}"),
)


def paraphrases() -> list[Pair]:
    """The same question in another frame, or with a synonym, or both."""
    pairs = []
    for task in TASKS:
        for first, second in itertools.permutations(FRAMES, 2):
            pairs.append(Pair(first.format(task), second.format(task), "frame"))
        for word, other in SYNONYMS:
            if word in task:
                changed = task.replace(word, other, 1)
                for frame in FRAMES[:4]:
                    pairs.append(Pair(frame.format(task), frame.format(changed), "synonym"))
                    pairs.append(Pair(FRAMES[0].format(task), frame.format(changed), "synonym"))
    return pairs


def swaps() -> list[Pair]:
    """The same words but for one that decides, or in another order."""
    pairs = []
    for kind, changes in SWAPS:
        for task, (word, other) in itertools.product(TASKS, changes):
            if f" {word} " in f" {task} ":
                changed = f" {task} ".replace(f" {word} ", f" {other} ", 1).strip()
                pairs += [Pair(frame.format(task), frame.format(changed), kind) for frame in FRAMES[:6]]
    for _, things, frame in DIRECTIONS:
        for one, other in itertools.permutations(things, 2):
            pairs += [
                Pair(
                    outer.format(frame.format(one, other)),
                    outer.format(frame.format(other, one)),
                    "direction",
                )
                for outer in FRAMES[:4]
            ]
    return pairs


def near_pairs(count: int, seed: int = 0) -> list[Pair]:
    """`count` pairs, half of them paraphrases; no question stands first in one pair and second in another."""
    rng = random.Random(seed)
    chosen: dict[Pair, None] = {}
    roles: dict[str, int] = {}
    for pool, wanted in ((swaps(), count // 2), (paraphrases(), count)):
        rng.shuffle(pool)
        for pair in pool:
            fits = roles.get(pair.first, 0) == 0 and roles.get(pair.second, 1) == 1
            if fits and pair.first != pair.second and len(chosen) < wanted:
                roles[pair.first], roles[pair.second] = 0, 1
                chosen[pair] = None
    pairs = list(chosen)
    rng.shuffle(pairs)
    return pairs
