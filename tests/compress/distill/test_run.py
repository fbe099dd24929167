"""A distilled student is an ordinary folder, nearer to its teacher than it was, and the same after an interruption."""

import json
from dataclasses import replace

import pytest
import torch

from penstock.compress.distill.job import DistillJob
from penstock.compress.distill.objective import DistillSettings
from penstock.compress.distill.run import distill
from penstock.compress.plain_model import load_plain
from penstock.compress.texts import Example
from penstock.compress.training.batches import Batches
from penstock.compress.training.loop import TrainingSettings
from penstock.compress.training.schedule import Budget
from penstock.errors import CompressError

EXAMPLES = [
    Example(prompt=f"archive {chr(97 + i % 26)}{chr(97 + i // 26)}", completion=f"tar {chr(97 + i % 26)} files")
    for i in range(120)
]  # fmt: skip


@pytest.fixture
def job(tiny_llama, tmp_path) -> DistillJob:
    return DistillJob(
        teacher=str(tiny_llama),
        output=tmp_path / "student",
        data="`questions.jsonl`",
        training=TrainingSettings(Budget(steps=20), batch_tokens=256, learning_rate=0.01),
        layers=1,
        device="cpu",
    )


def weights(folder) -> dict[str, torch.Tensor]:
    return load_plain(str(folder)).module.state_dict()


def test_a_student_of_layers_comes_nearer_to_its_teacher(job):
    done = distill(job, EXAMPLES)
    before, after = done.training.held_out_before, done.training.held_out
    assert after["forward-kl"] < 0.7 * before["forward-kl"]
    # As written, of weights read back, text by text and without autocast: the same but for bfloat16's rounding.
    assert done.measured.comparison.kl.value == pytest.approx(after["forward-kl"], rel=0.05)
    assert done.measured.acceptance.greedy.value == pytest.approx(done.measured.comparison.agreement.value)
    assert 0 < done.measured.acceptance.sampled.value < 1

    files = {file.name for file in job.output.iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.jsonl",
    }
    assert [path.name for path in job.output.parent.iterdir()] == ["student"]
    assert load_plain(str(job.output)).module.config.num_hidden_layers == 1
    card = (job.output / "README.md").read_text()
    assert "120 examples, 0 of them the same as another" in card
    assert f"| KL(teacher, student), nats per token | {done.measured.comparison.kl.value:.4g} [" in card
    assert "1 of the teacher's layers" in card and "forward-kl" in card
    lines = [json.loads(line) for line in (job.output / "training.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20


def test_a_job_that_was_interrupted_gives_the_same_student(job, monkeypatch):
    """With the student's own answers among the batches, whose sampling must come out the same too."""
    job = replace(job, on_policy=0.5, training=replace(job.training, budget=Budget(steps=10)))
    whole = replace(job, output=job.output.with_name("whole"))
    distill(whole, EXAMPLES)

    at = Batches.at

    def interrupted(self: Batches, step: int):
        if step >= 6:
            raise KeyboardInterrupt
        return at(self, step)

    monkeypatch.setattr("penstock.compress.training.loop.SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(Batches, "at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(job, EXAMPLES)
    assert not job.output.exists()
    monkeypatch.setattr(Batches, "at", at)
    distill(job, EXAMPLES)
    expected, found = weights(whole.output), weights(job.output)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_student_of_another_width_and_a_padded_vocabulary(job, tiny_llama, tmp_path):
    """Hidden states are matched through a projection that is learnt too; the vocabularies' matrices have different rows."""
    config = json.loads((tiny_llama / "config.json").read_text())
    rows = config["vocab_size"] + 8
    file = tmp_path / "small.json"
    file.write_text(json.dumps(config | {"hidden_size": 32, "head_dim": 8, "vocab_size": rows}))
    job = replace(job, layers=None, config=file, loss=DistillSettings("jsd", cross_entropy=0.1, hidden=0.5))
    done = distill(job, EXAMPLES)
    for part in ("jsd", "hidden", "cross_entropy"):
        assert done.training.held_out[part] < done.training.held_out_before[part]
    student = load_plain(str(job.output)).module
    assert student.lm_head.weight.shape == (rows, 32)
    assert student.dtype == load_plain(job.teacher).module.dtype


def test_a_disk_that_is_full_when_the_student_is_written_costs_no_step(job, monkeypatch):
    def no_space(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full, pytest.raises(CompressError, match=r"disk of .*student is full"):
        full.setattr("penstock.compress.distill.run.copy_companions", no_space)
        distill(job, EXAMPLES)
    assert [path.name for path in job.output.parent.iterdir()] == [".student.work"]
    monkeypatch.setattr(Batches, "at", None)  # another step would fail
    assert distill(job, EXAMPLES).training.steps == 20
    assert [path.name for path in job.output.parent.iterdir()] == ["student"]
