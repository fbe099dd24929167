"""`penstock distill` as a user runs it: one line for every mistake, and nothing half-written."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from answers_in_cache import keep_answers
from penstock_command import PENSTOCK
from tiny_model import write_tiny_model

from penstock.cli import main
from penstock.compress.training.batches import Batch, Batches


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("distill") / "teacher")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"how {chr(97 + i % 26)} {chr(97 + i // 26)}"},
                {"role": "assistant", "content": f"so {i}"},
            ]
        }
        for i in range(60)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def arguments(teacher: Path | str, data: Path, output: Path, /, **others: str | None) -> list[str]:
    given = {
        "teacher": str(teacher),
        "layers": "1",
        "data": str(data),
        "steps": "4",
        "batch-tokens": "256",
        "output": str(output),
    } | others
    flags = [[f"--{name}", value] for name, value in given.items() if value is not None]
    return ["distill", *(part for flag in flags for part in flag)]


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"teacher": "./nowhere"}, "no such folder"),
        ({"data": "/nowhere.jsonl"}, "/nowhere.jsonl cannot be read: No such file or directory."),
        ({"layers": "2"}, "layers is 2; the teacher has 2, so a student by layers has 1 to 1."),
        ({"layers": None, "student": "builtin"}, "The student has another vocabulary than the teacher: 4096 and 260 tokens"),
        ({"layers": None, "student-config": "/nowhere.json"}, "/nowhere.json describes no causal language model"),
        ({"context": "3"}, "None of the 60 examples has anything to learn within its first 3 tokens"),
        ({"steps": "0"}, "steps is 0; it must be above 0."),
        ({"on-policy": "1.5"}, "on_policy is 1.5; it is a share, from 0 to 1."),
        ({"tenant": "acme"}, "tenant is of the cache; give --from-cache with it."),
        ({"loss": "jsd", "beta": "1"}, "beta is 1.0; it must be between 0 and 1."),
        ({"beta": "0.3"}, "beta is of --loss jsd; leave it out with forward-kl."),
        pytest.param(
            {"device": "cuda"},
            "torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        ({"learning-rate": "1e30"}, "at step 1, where the learning rate was 1e+30. Run the same command with"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(
    teacher: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    others: dict[str, str | None],
    says: str,
) -> None:
    output = tmp_path / "student"
    assert main(arguments(teacher, questions, output, **others)) == 1
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and error[-1].startswith("penstock distill: ")
    assert not output.exists() and not list(tmp_path.glob("*.partial"))


def test_an_empty_file_and_a_folder_in_use(
    teacher: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert main(arguments(teacher, empty, tmp_path / "student")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jsonl"]
    assert "empty.jsonl is empty" in capsys.readouterr().err
    assert main(arguments(teacher, questions, tmp_path)) == 1
    assert "has something in it; name another folder, or give --force" in capsys.readouterr().err


def test_one_tenants_answers_in_the_cache_are_data(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_answers(tmp_path / "cache", {"acme": 30, "other": 5})
    output = tmp_path / "student"
    command = arguments(teacher, output, output, data=None)
    command += ["--from-cache", "--cache-path", str(tmp_path / "cache")]
    assert main(command) == 1
    assert "holds nothing of tenant 'default'" in capsys.readouterr().err
    assert main([*command, "--tenant", "acme"]) == 0
    assert "30 examples of tenant 'acme' from the cache" in capsys.readouterr().err
    card = (output / "README.md").read_text()
    assert "answers that a cache kept: 30 examples" in card and "acme" not in card, (
        "whose they were is nobody's business"
    )


def test_it_goes_on_with_the_answers_it_began_with_though_the_cache_has_others_by_then(
    teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, at = tmp_path / "cache", Batches.at
    keep_answers(cache, {"acme": 30})

    def command(output: Path) -> list[str]:
        where = ["--from-cache", "--cache-path", str(cache), "--tenant", "acme"]
        return [*arguments(teacher, output, output, data=None), *where]

    def interrupted(self: Batches, step: int) -> Batch:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return at(self, step)

    cut, uncut = tmp_path / "cut", tmp_path / "uncut"
    assert main(command(uncut)) == 0
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "at", interrupted)
        assert main(command(cut)) == 130
    keep_answers(cache, {"acme": 10}, since=30)
    assert main(command(cut)) == 0
    assert "Going on with the texts that this began with" in caplog.text
    assert (cut / "model.safetensors").read_bytes() == (uncut / "model.safetensors").read_bytes()
    assert "answers that a cache kept: 30 examples" in (cut / "README.md").read_text()
    assert main([*command(cut), "--force"]) == 0, "what is written is done: another job begins"
    assert "answers that a cache kept: 40 examples" in (cut / "README.md").read_text()


def test_ctrl_c_and_the_same_command_again(teacher: Path, questions: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "student", tmp_path / ".student.work"
    command = [*PENSTOCK, *arguments(teacher, questions, output, steps="40")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = work / "training.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    assert "Interrupted; the same command goes on from here." in error
    assert not output.exists() and (work / "checkpoint.pt").exists()
    steps = len(log.read_text().splitlines())

    assert main(command[len(PENSTOCK) :]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert len((output / "training.jsonl").read_text().splitlines()) > steps


def test_the_teacher_answers_prompts_through_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    tasks = ["list files", "copy a folder", "unpack a tar archive", "find big files", "show free memory"]
    asked = [{"messages": [{"role": "user", "content": f"how do I {task}?"}]} for task in tasks]
    # An answer that is already there is not what the student learns.
    asked[0]["messages"].append({"role": "assistant", "content": "no idea"})
    prompts.write_text("".join(json.dumps(line) + "\n" for line in asked))
    output = tmp_path / "student"
    others = {"data": None, "generate": str(prompts), "steps": "1"}
    command = arguments("builtin", prompts, output, **others)
    assert main([*command, "--context", "12"]) == 1  # of prompt and answer
    assert "The teacher ended none of its 5 answers within 12 tokens" in capsys.readouterr().err
    assert main(command) == 0
    assert "`prompts.jsonl`, answered by the teacher: 5 examples" in (output / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "student"]
