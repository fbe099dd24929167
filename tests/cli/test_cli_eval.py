"""`penstock eval models`: one table of what was asked for, written whole or not at all; a mistake is one line, and early."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import write_tiny_model

from penstock import cli_engine_runs
from penstock.cli import main
from penstock.cli_model_spec import WEIGHTS, ModelSpec, model_spec
from penstock.compress.evaluate import ServedScorer, plot, speed
from penstock.config import load_settings
from penstock.errors import ConfigError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("eval") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("eval") / "text.jsonl"
    lines = [
        {
            "messages": [
                {"role": "user", "content": "where?"},
                {"role": "assistant", "content": "here, there"},
            ]
        },
        {"prompt": "one, two, ", "completion": "three"},
        {"text": "and a longer text that follows nothing at all"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("eval") / "tasks.jsonl"
    lines = [{"question": "where?", "accept": ["(?s).*"]}, {"prompt": "1 + 1 =", "answer": "never"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def failure(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> str:
    assert main(["eval", "models", *map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error.strip()


def test_one_table_of_everything(tiny, text, tasks, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(speed.measure_speeds.__kwdefaults__, "rounds", 2)
    monkeypatch.setattr(cli_engine_runs, "DECODED_TOKENS", 8)
    out = tmp_path / "out"
    models = [f"{tiny}:none", f"{tiny}:w8a8", f"{tiny}:w4a16"]
    options = [
        "--text",
        str(text),
        "--tasks",
        str(tasks),
        "--speed",
        "--max-tokens",
        "8",
        "--output",
        str(out),
    ]
    assert main(["eval", "models", *models, *options]) == 0
    printed = capsys.readouterr().out
    assert (out / "eval.md").read_text() == printed
    assert sorted(file.name for file in out.iterdir()) == [
        "answers.jsonl", "eval.json", "eval.md", "eval.png", "eval.svg",
    ]  # fmt: skip
    assert (out / "eval.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (out / "eval.svg").read_text()

    report = json.loads((out / "eval.json").read_text())
    stored, eight, four = report["rows"]
    assert [row["precision"] for row in report["rows"]] == ["float32", "w8a8", "w4a16"]
    assert report["reference"] == models[0] and stored["comparison"]["kl"]["value"] == 0
    assert 0 < eight["comparison"]["kl"]["value"] < four["comparison"]["kl"]["value"]
    assert stored["weight_bytes"] > eight["weight_bytes"] > four["weight_bytes"]
    for row in report["rows"]:
        assert row["accuracy"]["share"]["value"] == 0.5
        assert [one["batch"] for one in row["speeds"]] == [1, 16]
        assert all(one["tokens_per_second"]["value"] > 0 for one in row["speeds"])
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["asked"] for line in answers] == ["where?", "1 + 1 ="]
    assert all(answers[0]["answers"][name]["right"] for name in models)

    (head,) = (line for line in printed.splitlines() if line.startswith("| model"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "model", "precision", "weights", "perplexity", "change", "KL, nats", "same top token", "right answers", "change",
        "tokens/s, batch 1", f"beside {models[0]}", "tokens/s, batch 16", f"beside {models[0]}",
    ]  # fmt: skip


def test_the_table_says_of_how_many_topics_it_is(tiny, tmp_path, capsys):
    lines = [{"question": f"where {word}?", "answer": "never", "topic": "where"} for word in ("now", "then")]
    lines += [{"question": "who?", "answer": "never"}]
    tasks, text = tmp_path / "tasks.jsonl", tmp_path / "text.jsonl"
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = [{"text": f"one two {word} four", "topic": word[0]} for word in ("six", "seven", "three")]
    text.write_text("".join(json.dumps(line) + "\n" for line in said))
    options = ["--tasks", str(tasks), "--text", str(text), "--max-tokens", "2"]
    assert main(["eval", "models", f"{tiny}:none", *options]) == 0
    printed = capsys.readouterr().out
    assert "3 of them about 2 topics" in printed and "tokens that count about 2 topics" in printed


def test_a_reference_of_its_own_and_only_what_is_asked(tiny, text, capsys):
    models = [f"{tiny}:none", "--dtype", "bfloat16", "--reference", f"{tiny}:float32"]
    assert main(["eval", "models", *models, "--text", str(text)]) == 0
    printed = capsys.readouterr().out
    assert f"beside {tiny}:float32 (perplexity" in printed and "| bfloat16 " in printed
    assert "tokens/s" not in printed and "right" not in printed


def test_answers_of_models_of_other_vocabularies_compare(tiny, tmp_path, tasks, capsys):
    other = write_tiny_model(tmp_path / "other", added=["<a>", "<b>"])
    assert main(["eval", "models", str(tiny), str(other), "--tasks", str(tasks), "--max-tokens", "4"]) == 0
    assert "+0 -0" in capsys.readouterr().out


def test_a_token_means_the_same_to_all_or_texts_are_refused(tiny, tmp_path, text, capsys):
    larger = write_tiny_model(tmp_path / "larger", added=["<a>", "<b>"])
    said = failure(capsys, tiny, larger, "--text", text)
    assert f"{larger} has a vocabulary of 262 tokens and {tiny} one of 260" in said
    one, other = (write_tiny_model(tmp_path / name, added=[f"<{name}>"]) for name in "xy")
    said = failure(capsys, one, other, "--text", text)
    assert f"{other} has another vocabulary than {one}: 261 and 261 tokens, " in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--speed", "--context", "1"], "context is 1; it must be at least 2."),
        (["--speed", "--max-tokens", "0"], "max_tokens is 0; it must be at least 1."),
        (["--speed", "--max-tokens", "5"], "max_tokens is of --tasks, which is not given."),
        (["--speed", "--force"], "force is of --output, which is not given."),
        ([], "Say what to measure: --text FILE, --tasks FILE, --speed"),
        (["--reference", "x", "--speed"], "give --text FILE too"),
        (["--text", "nowhere.jsonl"], "nowhere.jsonl cannot be read: No such file"),
        (["--tasks", "nowhere.jsonl"], "nowhere.jsonl cannot be read: No such file"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys):
    """Before any model is looked for: there is none."""
    assert says in failure(capsys, "./no-model", *arguments)


def test_models_that_are_not_there_or_unknown_or_named_twice(tiny, tmp_path, capsys):
    assert "no such folder" in failure(capsys, tiny, "./no-model:w8a8", "--speed")
    (tmp_path / "config.json").write_text('{"model_type": "no-such"}')
    said = failure(capsys, tmp_path, "--speed")
    assert f"{tmp_path} cannot be loaded as a causal language model" in said
    assert "named twice" in failure(capsys, tiny, tiny, "--speed")


def test_broken_weights_are_named_with_the_text_and_the_task(tiny, text, tasks, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"][7] = np.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    said = failure(capsys, tiny, broken, "--text", text)
    assert f"{broken} gives logits that are not numbers (NaN or infinite) in text 1;" in said
    said = failure(capsys, tiny, broken, "--tasks", tasks)
    assert f"{broken} gives logits that are not numbers (NaN or infinite) for task 1;" in said


def test_what_is_there_stays_unless_forced(tiny, text, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    assert "has something in it" in failure(capsys, "./no-model", "--text", text, "--output", out)
    assert main(["eval", "models", str(tiny), "--text", str(text), "--output", str(out), "--force"]) == 0
    assert not (out / "mine").exists() and (out / "eval.md").exists()


@pytest.mark.parametrize(
    ("ends", "code", "says"),
    [
        (lambda: Path("/dev/full").write_text("x" * 100_000), 1, "out is full; nothing was written."),
        (
            lambda: os.kill(os.getpid(), signal.SIGINT),
            130,
            "penstock eval: interrupted; the same command goes on from here.",
        ),
    ],
    ids=["full disk", "Ctrl-C"],
)
def test_nothing_is_half_written_and_nothing_computed_again(
    ends, code, says, tiny, text, tasks, tmp_path, capsys, monkeypatch
):
    def draw(report, folder):
        (folder / "eval.png").touch()
        ends()

    command = ["--text", text, "--tasks", tasks, "--output"]
    assert main(["eval", "models", str(tiny), *map(str, command), str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole/eval.json").read_text())
    shutil.rmtree(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(plot, "draw", draw)
        assert says in failure(capsys, tiny, *command, tmp_path / "out", code=code)
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]

    findings = tmp_path / ".out.work/findings.jsonl"
    lines = findings.read_text().splitlines(keepends=True)
    assert len(lines) == 5, "three texts and two tasks"
    findings.write_text("".join(lines[:-1]) + lines[-1][:9])  # as a kill would leave it
    asked = []
    answering = cli_engine_runs.answering

    def counted(engine, *others):
        answer = answering(engine, *others)
        return lambda numbers, prompts: asked.append(numbers) or answer(numbers, prompts)

    monkeypatch.setattr(cli_engine_runs, "answering", counted)
    monkeypatch.setattr(ServedScorer, "logits", None)  # a text computed again would fail
    assert main(["eval", "models", str(tiny), *map(str, command), str(tmp_path / "out")]) == 0
    assert asked == [[1]]
    assert json.loads((tmp_path / "out/eval.json").read_text()) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_findings_of_other_texts_are_not_gone_on_with(tiny, text, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other.jsonl"
    other.write_text(text.read_text().replace("here, there", "nowhere"))
    with monkeypatch.context() as patched:
        patched.setattr(plot, "draw", lambda report, folder: os.kill(os.getpid(), signal.SIGINT))
        failure(capsys, tiny, "--text", text, "--output", tmp_path / "out", code=130)
    assert main(["eval", "models", str(tiny), "--text", str(other), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/eval.json").read_text())
    assert main(["eval", "models", str(tiny), "--text", str(other), "--output", str(tmp_path / "new")]) == 0
    assert found == json.loads((tmp_path / "new/eval.json").read_text())


def test_a_plot_without_matplotlib_is_refused_at_the_start(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = failure(capsys, "./no-model", "--text", text, "--output", tmp_path / "out")
    assert "install penstock[plot]" in said


def test_a_model_and_its_precision_in_one_word(tmp_path, monkeypatch):
    assert model_spec("builtin") == ModelSpec("builtin", "builtin")
    assert model_spec("a/b:w8a8") == ModelSpec("a/b:w8a8", "a/b", "w8a8")
    assert model_spec("a:w4a16+kv8") == ModelSpec("a:w4a16+kv8", "a", "w4a16", "auto", "int8")
    assert model_spec("a:kv8") == ModelSpec("a:kv8", "a", "auto", "auto", "int8")
    assert model_spec("a:float32") == ModelSpec("a:float32", "a", "none", "float32")
    monkeypatch.chdir(tmp_path)
    Path("has:w8a8").mkdir()
    assert model_spec("has:w8a8") == ModelSpec("has:w8a8", "has:w8a8"), "a folder of that very name"
    for wrong in ("a:w3", "a:w8a8+kv4", "a:kv8+w8a8", "a:", ":w8a8", "a:w8a8+"):
        with pytest.raises(ConfigError, match=r"must be one of none, float32, w8a8, w8a16, w4a16, or kv8"):
            model_spec(wrong)
    for known in WEIGHTS:
        found = model_spec(f"a:{known}")
        load_settings(
            {"quantize": found.quantize, "dtype": found.dtype}, {}
        )  # which refuses what does not exist
