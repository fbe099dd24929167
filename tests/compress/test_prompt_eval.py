"""`penstock eval sparse-prompts` measures a real model, through the engine's own KV cache."""

import json
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.compress.prompt_eval import PromptReport, evaluate_prompts
from penstock.compress.prompt_report import tables
from penstock.errors import ConfigError
from penstock.models.loading import load_model
from penstock.models.tokenizer import Tokenizer

MASSES = [0.3, 1.0]


@pytest.fixture(scope="module")
def report(tiny_llama: Path) -> PromptReport:
    model, tokenizer = load_model(str(tiny_llama), device="cpu"), Tokenizer.load(str(tiny_llama))
    return evaluate_prompts(model, tokenizer.encode, None, masses=MASSES, decoded=100, needles=2)


def test_all_of_the_mass_is_dense(report):
    dense, some, everything = report.answers
    assert (dense.mass, some.mass, everything.mass) == (None, *MASSES)
    assert everything.perplexity == pytest.approx(dense.perplexity, rel=1e-4)
    assert some.perplexity != pytest.approx(dense.perplexity, rel=1e-5)
    assert everything.needles_found == dense.needles_found
    assert everything.kept == dense.kept == {1024: 1.0} and 0 < some.kept[1024] < 1
    assert everything.true_mass > 0.9999 and everything.output_error < 1e-5
    assert 0.28 < some.least_mass <= some.true_mass < 1 and some.output_error > 0
    assert all(answer.seconds[1024] > 0 for answer in report.answers)


def test_tables_say_it(report):
    lines = list(tables(report))
    assert sum(line.startswith(("| dense |", "| 0.3 |", "| 1.0 |")) for line in lines) == 3
    assert any(line.startswith("| 1024 |") and "100.0%" in line for line in lines)


def test_what_cannot_be_measured_is_refused(tiny_llama):
    model = load_model(str(tiny_llama), device="cpu")
    with pytest.raises(ConfigError, match=r"The text has 3 tokens; it must be longer .* context of 1024"):
        evaluate_prompts(model, lambda text: [1], [1, 2, 3], masses=MASSES)
    with pytest.raises(ConfigError, match="decoded is 512; of a prompt it must be below the chunk of 512"):
        evaluate_prompts(model, lambda text: [1], [1] * 2000, masses=MASSES, decoded=512)


def test_the_command_writes_what_it_prints(tiny_llama, tmp_path, capsys):
    arguments = ["eval", "sparse-prompts", "--model", str(tiny_llama), "--mass", "0.9", "--needles", "1"]
    assert main([*arguments, "--decoded", "4", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "sparse-prompts.md").read_text() == capsys.readouterr().out
    found = json.loads((tmp_path / "sparse-prompts.json").read_text())
    assert found["context"] == 1024 and found["answers"][1]["kept"].keys() == {"1024"}
