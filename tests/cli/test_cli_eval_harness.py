"""`penstock eval harness`: tasks of a user's own, two models beside each other; mistakes are one line."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from penstock import cli_eval_harness
from penstock.cli import main

QUESTIONS = [("one", "1"), ("two", "2"), ("three", "3")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("harness") / "tiny")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task that generates, and one that scores; their data are files."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [{"question": q, "answer": a, "choices": ["1", "2", "3"]} for q, a in QUESTIONS]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, body in {
        "tiny_write": "output_type: generate_until\ngeneration_kwargs: {until: ['\\n'], max_gen_toks: 8, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
        "tiny_choose": "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
    }.items():
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'data.jsonl'}}}}}\n"
            f"test_split: test\ndoc_to_text: '{{{{question}}}}'\ndoc_to_target: '{{{{answer}}}}'\n{body}"
        )
    return folder


def command(tiny: Path, tasks: Path, *more: object) -> list[str]:
    given = [f"{tiny}:none", f"{tiny}:w8a8", "--tasks", "tiny_write,tiny_choose", "--include", tasks, *more]
    return ["eval", "harness", *map(str, given)]


def test_two_models_on_own_tasks_and_on_after_an_interruption(tiny, tasks, tmp_path, capsys, monkeypatch):
    output = tmp_path / "report"
    assert main(command(tiny, tasks, "--output", output)) == 0
    told = capsys.readouterr().out
    assert f"{tiny}:none: bfloat16" in told or f"{tiny}:none: float32" in told
    assert "| tiny_write: exact_match ↑ |" in told and "| tiny_choose: acc ↑ " in told
    assert (output / "harness.md").read_text() in told
    whole = json.loads((output / "harness.json").read_text())
    assert len(whole["scores"][f"{tiny}:w8a8"]["tiny_choose: acc"]["samples"]) == len(QUESTIONS)

    other = tmp_path / "other"
    with monkeypatch.context() as patched:
        patched.setattr(cli_eval_harness, "_write", lambda *_, force: os.kill(os.getpid(), signal.SIGINT))
        assert main(command(tiny, tasks, "--output", other)) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not other.exists()
    from penstock.compress.evaluate.harness import Harnessed

    monkeypatch.setattr(Harnessed, "_likelihood", None)  # what was found is not computed again
    monkeypatch.setattr(Harnessed, "_prompt", None)
    assert main(command(tiny, tasks, "--output", other)) == 0
    assert json.loads((other / "harness.json").read_text()) == whole
    assert not list(tmp_path.glob(".*.work"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tasks", "tiny_wrote"], "The harness knows no task 'tiny_wrote'; did you mean tiny_write?"),
        (["--tasks", ","], "tasks names none; give one, or several with commas between."),
        (["--include", "/nowhere"], "include is /nowhere, which is no folder."),
        (["--limit", "0"], "limit is 0; it must be at least 1."),
        (["--shots", "-1"], "shots is -1; it must be at least 0."),
        (["--force"], "force is of --output, which is not given."),
    ],
)
def test_a_mistake_is_one_line(tiny, tasks, capsys, more, says):
    assert main(command(tiny, tasks, *more)) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_data_that_is_not_there_is_told_with_its_kind(tiny, tasks, capsys):
    (tasks / "data.jsonl").unlink()
    assert main(command(tiny, tasks)) == 1
    assert "lm-evaluation-harness gave up: FileNotFoundError: " in capsys.readouterr().err


def test_without_the_harness_it_says_what_to_install(tiny, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert main(["eval", "harness", str(tiny), "--tasks", "arc_easy"]) == 1
    assert "pip install 'penstock[harness]'" in capsys.readouterr().err
