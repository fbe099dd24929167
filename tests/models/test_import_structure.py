"""transformers imported with what its files define as kept on disk: the same names, its files left unread."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.models import import_structure

# What a fresh process finds, and how many of the models' files it opened for it.
PROGRAM = """
import json, sys

opened = set()
def watch(event, args):
    if event == "open" and "/transformers/models/" in str(args[0]) and str(args[0]).endswith(".py"):
        opened.add(args[0])

sys.addaudithook(watch)
from penstock.models.import_structure import READER, kept_import_structure

if sys.argv[1] == "kept":
    with kept_import_structure():
        import transformers
else:
    import transformers
names = sorted(dir(transformers))
num_opened = len(opened)
from transformers.models.llama import LlamaForCausalLM

assert transformers.LlamaConfig is LlamaForCausalLM.config_class
structure = sys.modules[READER].define_import_structure(transformers.models.__file__)
structure = sorted((sorted(needs), sorted((m, sorted(n)) for m, n in found.items())) for needs, found in structure.items())
print(json.dumps([num_opened, names, structure]))
"""


def imported(home: Path, how: str) -> tuple[int, Any, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, how],
        env={**os.environ, "HOME": str(home)},
        check=True,
        capture_output=True,
        text=True,
    )
    num_opened, names, structure = json.loads(done.stdout.splitlines()[-1])
    return num_opened, names, structure


def test_the_same_names_without_reading_the_files_again(tmp_path):
    opened, *expected = imported(tmp_path, "read")
    assert opened > 1000 and len(expected[0]) > 1000 and not list(tmp_path.rglob("*.json"))
    first, *found = imported(tmp_path, "kept")
    assert first > 1000 and found == expected
    again, *found = imported(tmp_path, "kept")
    assert again < 10 and found == expected
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(file.read_bytes()[:1000])
    broken, *found = imported(tmp_path, "kept")
    assert broken > 1000 and found == expected
    again, *_ = imported(tmp_path, "kept")
    assert again < 10, "and is mended"


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / ".cache").write_text("a file")
    opened, *_ = imported(tmp_path, "kept")
    assert opened > 1000


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "models"
    (folder / "one" / "__pycache__").mkdir(parents=True)
    (folder / "one" / "modeling_one.py").write_text('__all__ = ["One"]')

    def place() -> Path | None:
        return import_structure._place_for.__wrapped__(folder)

    place.file = folder / "one" / "modeling_one.py"
    return place


def test_a_file_that_changed_is_read_anew(place):
    before = place()
    (place.file.parent / "__pycache__" / "modeling_one.pyc").touch()
    assert before is not None and place() == before, "what Python compiles is no change"
    place.file.write_text('__all__ = ["Two"]')
    os.utime(place.file, ns=(1, 1))
    edited = place()
    os.utime(place.file, ns=(2, 2))
    touched = place()
    (place.file.parent / "tokenization_one.py").write_text("")
    assert len({before, edited, touched, place()}) == 4


def test_no_more_are_kept_than_there_are_environments(place):
    last = place()
    for number in range(12):
        (last.parent / f"{number}.json").touch()
        os.utime(last.parent / f"{number}.json", (number, number))
    import_structure._store(last, {frozenset({"torch"}): {"one": {"One"}}})
    kept = {file.stem for file in last.parent.iterdir()}
    assert kept == {last.stem, *map(str, range(5, 12))}
    assert import_structure._load(last) == {frozenset({"torch"}): {"one": {"One"}}}
