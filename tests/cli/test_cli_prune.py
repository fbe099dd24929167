"""`penstock prune` as a user runs it: one line for every mistake, and nothing half-written."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from answers_in_cache import keep_answers
from noted_engines import noted_engines
from penstock_command import PENSTOCK
from tiny_model import write_tiny_model

from penstock.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("prune") / "model")


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


def arguments(model: Path | str, data: Path, output: Path, /, **others: str | None) -> list[str]:
    given = {
        "mlp": "0.5",
        "data": str(data),
        "recovery-steps": "2",
        "max-kl": "10",
        "max-perplexity-change": "10",
        "output": str(output),
    } | others
    flags = [[f"--{name}", value] for name, value in given.items() if value is not None]
    return ["prune", str(model), *(part for flag in flags for part in flag)]


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"data": "/nowhere.jsonl"}, "/nowhere.jsonl cannot be read: No such file or directory."),
        ({"mlp": "0.1"}, "mlp is 0.1; the share of the 128 channels that goes can be from 0.25 to 0.75"),
        ({"mlp": None, "kv-groups": "1"}, "the share of the 2 groups that goes can be from 0.5 to 0.5"),
        ({"mlp": None, "layers": "2"}, "layers is 2; the model has 2, of which 1 to 1 can go."),
        ({"mlp": None, "size": "0.1"}, "the share of this model's parameters that stays can be from"),
        ({"mlp": None, "speed-up": "1"}, "speed_up is 1.0; it must be above 1."),
        ({"mlp": None}, "Say what is to go: --mlp SHARE, --kv-groups SHARE, --layers N, or a target"),
        ({"size": "0.5"}, "--mlp and --size are given; a target chooses what goes by itself"),
        ({"tenant": "acme"}, "tenant is of the cache; give --from-cache with it."),
        ({"max-kl": "0"}, "max_kl is 0.0; it must be above 0."),
        ({"recovery-steps": "-1"}, "recovery_steps is -1; it must be at least 0."),
        ({"recovery-steps": "0", "learning-rate": "0.1"}, "learning_rate is of recovery, which --recovery-steps 0"),
        ({"max-kl": "1e-9"}, "fails its gate and is not written: its KL divergence is"),
        ({"learning-rate": "1e30"}, "at step 1, where the learning rate was 1e+30. Run the same command with"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(
    model: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    others: dict[str, str | None],
    says: str,
) -> None:
    output = tmp_path / "pruned"
    assert main(arguments(model, questions, output, **others)) == 1
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and error[-1].startswith("penstock prune: ")
    assert not output.exists() and not list(tmp_path.glob(".*.partial"))


def test_a_model_that_is_not_there_and_a_folder_in_use(
    model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("./nowhere", questions, tmp_path / "pruned")) == 1
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "something").touch()
    assert main(arguments(model, questions, tmp_path)) == 1
    assert "has something in it; name another folder, or give --force" in capsys.readouterr().err


def test_one_tenants_answers_in_the_cache_are_data(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_answers(tmp_path / "cache", {"acme": 30, "other": 5})
    output = tmp_path / "pruned"
    command = arguments(model, output, output, data=None)
    command += ["--from-cache", "--cache-path", str(tmp_path / "cache")]
    assert main(command) == 1
    assert "holds nothing of tenant 'default'" in capsys.readouterr().err
    assert main([*command, "--tenant", "acme"]) == 0
    assert "30 examples of tenant 'acme' from the cache" in capsys.readouterr().err
    card = (output / "README.md").read_text()
    assert "30 answers that a cache kept" in card and "acme" not in card, (
        "whose they were is nobody's business"
    )


def test_ctrl_c_and_the_same_command_again(
    model: Path,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, work = tmp_path / "pruned", tmp_path / ".pruned.work"
    command = [*PENSTOCK, *arguments(model, questions, output, **{"recovery-steps": "40"})]
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

    monkeypatch.setattr("penstock.cli_engine_runs.DECODED_TOKENS", 4)
    timed = noted_engines(monkeypatch, lonely=True)
    assert main(command[len(PENSTOCK) :]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
    told = capsys.readouterr().out
    assert "64 of 128 MLP channels" in told and "held-out texts: KL" in told
    # The engine has served it, beside its parent.
    assert "batch 1: " in told and "x as fast as its parent" in told
    assert timed == ["model", ".pruned.partial", "model"]
