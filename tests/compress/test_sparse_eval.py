"""`penstock eval sparse` measures a real model, through the engine's own KV cache."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from penstock.compress.sparse_eval import SERVED, Report, evaluate
from penstock.compress.sparse_report import draw, tables
from penstock.errors import ConfigError
from penstock.models.loading import load_model
from penstock.models.tokenizer import Tokenizer

MASSES = [0.6, 1.0]


@pytest.fixture(scope="module")
def report(tiny_llama: Path) -> Report:
    model, tokenizer = load_model(str(tiny_llama), device="cpu"), Tokenizer.load(str(tiny_llama))
    return evaluate(model, tokenizer.encode, None, masses=MASSES, decoded=12, needles=2)


def test_all_of_the_mass_is_dense(report):
    dense, some, everything = report.answers
    assert (dense.mass, some.mass, everything.mass) == (None, *MASSES)
    assert everything.perplexity == dense.perplexity != some.perplexity
    assert everything.needles_found == dense.needles_found
    (speed,) = report.speed
    assert speed.context == 1024 and speed.kept[1.0] == 1.0 and 0 < speed.kept[0.6] < 1


def test_every_way_of_estimating_is_judged(report):
    assert {found.estimator for found in report.fidelity} == {"int8", "min_max", "mean_std"}
    for found in report.fidelity:
        assert 0 < found.kept <= 1 and 0 <= found.least_mass <= found.true_mass <= 1.0001
        if found.estimator == SERVED:
            assert found.least_mass > found.mass - 0.02
        if found.true_mass > 0.9999:
            assert found.output_error < 1e-3


def test_tables_and_plot(report, tmp_path):
    lines = list(tables(report))
    assert "| dense |" in "\n".join(lines) and sum("min_max" in line for line in lines) == len(MASSES)
    draw(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_shorter_than_the_context_is_refused(tiny_llama):
    model = load_model(str(tiny_llama), device="cpu")
    with pytest.raises(ConfigError, match=r"The text has 3 tokens; it must be longer .* context of 1024"):
        evaluate(model, lambda text: [1], [1, 2, 3], masses=MASSES)


def test_the_command_writes_what_it_prints(tiny_llama, tmp_path, capsys):
    from penstock.cli import main

    arguments = ["eval", "sparse", "--model", str(tiny_llama), "--mass", "0.9", "--needles", "1"]
    assert main([*arguments, "--decoded", "4", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "sparse-attention.md").read_text() == printed
    found = json.loads((tmp_path / "sparse-attention.json").read_text())
    assert found["context"] == 1024 and found["speed"][0]["ratio"].keys() == {"0.9"}
    assert (tmp_path / "sparse-attention.png").exists()
    assert main([*arguments, "--decoded", "1024"]) == 1
    assert "decoded is 1024; it must be below the model's context of 1024" in capsys.readouterr().err


def test_what_cannot_be_written_is_told_and_not_half_there(tiny_llama, tmp_path, capsys, monkeypatch):
    from penstock.cli import main
    from penstock.compress import sparse_report

    def full(report, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "mine").touch()
    arguments = ["eval", "sparse", "--mass", "0.9", "--needles", "1", "--decoded", "4"]
    assert main([*arguments, "--model", "./no-model", "--output", str(tmp_path / "mine" / "out")]) == 1
    assert "mine may not be written to." in capsys.readouterr().err  # before the model is looked for
    monkeypatch.setattr(sparse_report, "draw", full)
    assert main([*arguments, "--model", str(tiny_llama), "--output", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].endswith("No space left on device. What was measured is printed.")
    assert "| dense |" in said.out and [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("what", ["sparse", "sparse-prompts"])
def test_an_interruption_is_a_line(what, tiny_llama, tmp_path, capsys, monkeypatch):
    """Also where a library turns it into an error of its own, as safetensors does."""
    from penstock.cli import main
    from penstock.models import loading

    def interrupted(*arguments, **others):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("could not determine the shape")

    monkeypatch.setattr(loading, "load_model", interrupted)
    assert main(["eval", what, "--model", str(tiny_llama), "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "penstock eval: interrupted; nothing was written.\n"
    assert not list(tmp_path.iterdir())
