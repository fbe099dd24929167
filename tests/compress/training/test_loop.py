"""Training lowers the loss, ends as it should when interrupted at any step, and says what is wrong when it diverges."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from counting_texts import counting_texts, load

from penstock.compress.distill.recover import recover
from penstock.compress.folder import WorkFolder
from penstock.compress.training import loop
from penstock.compress.training.batches import Batches
from penstock.compress.training.loop import TrainingSettings, train
from penstock.compress.training.objective import CrossEntropy
from penstock.compress.training.optimizer import set_rate
from penstock.compress.training.schedule import Budget, rate_at
from penstock.errors import CompressError, Terminated


def run(model, work: Path, **settings):
    work.mkdir(exist_ok=True)
    known = {"budget": Budget(steps=12), "batch_tokens": 256, "seed": 5} | settings
    source = Batches(counting_texts(0, 80), known["batch_tokens"], known["seed"])
    return train(model, source, counting_texts(1, 9), CrossEntropy(), TrainingSettings(**known), work)


def lines(work: Path) -> list[dict]:
    """Of the log, without what a clock says."""
    found = [json.loads(line) for line in (work / "training.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in found]


def test_the_held_out_loss_falls(tiny_llama, tmp_path):
    report = run(load(tiny_llama), tmp_path, budget=Budget(steps=30), learning_rate=0.01)
    assert report.steps == 30
    assert report.held_out["loss"] < report.held_out_before["loss"] - 1
    assert report.held_out["loss"] == pytest.approx(report.held_out["cross_entropy"])
    log = lines(tmp_path)
    assert log[0]["step"] == 0 and log[0]["held_out"]["loss"] == pytest.approx(report.held_out_before["loss"])
    assert [line["step"] for line in log if "held_out" not in line] == list(range(1, 31))
    assert sum("held_out" in line for line in log) == loop.EVALUATIONS + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tiny_llama, tmp_path, number):
    whole, parts = load(tiny_llama), load(tiny_llama)
    run(whole, tmp_path / "whole")

    class Interrupted(Batches):
        def at(self, step: int):
            if step == 5:
                os.kill(os.getpid(), number)
            return super().at(step)

    (tmp_path / "parts").mkdir()
    settings = TrainingSettings(Budget(steps=12), batch_tokens=256, seed=5)
    source = Interrupted(counting_texts(0, 80), 256, 5)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
        train(parts, source, counting_texts(1, 9), CrossEntropy(), settings, tmp_path / "parts")
    assert lines(tmp_path / "parts")[-1]["step"] == 6
    # What a kill would leave: lines of steps after the checkpoint, the last one torn.
    with (tmp_path / "parts/training.jsonl").open("a") as log:
        log.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    parts = load(tiny_llama)
    report = run(parts, tmp_path / "parts")

    assert report.steps == 12
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_signals_do_as_before_afterwards(tiny_llama, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run(load(tiny_llama), tmp_path, budget=Budget(steps=1))
    assert signal.getsignal(signal.SIGINT) is before


def test_gradient_checkpointing_changes_the_memory_and_nothing_else(tiny_llama, tmp_path):
    plain, checkpointed = load(tiny_llama), load(tiny_llama)
    run(plain, tmp_path / "plain", budget=Budget(steps=2), bf16=False)
    run(checkpointed, tmp_path / "other", budget=Budget(steps=2), bf16=False, gradient_checkpointing=True)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weight, checkpointed.state_dict()[name], rtol=1e-5, atol=1e-5)


def test_a_loss_that_is_no_number_ends_training_with_what_to_do(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)

    class Spoilt(CrossEntropy):
        calls = 0

        def forward(self, student, batch):
            loss = super().forward(student, batch)
            self.calls += student.module.training
            if self.calls == 4:
                loss.value.data.fill_(math.nan)
            return loss

    settings = TrainingSettings(Budget(steps=12), batch_tokens=256, learning_rate=0.004)
    model = load(tiny_llama)
    with pytest.raises(CompressError) as raised:
        train(
            model, Batches(counting_texts(0, 80), 256, 0), counting_texts(1, 9), Spoilt(), settings, tmp_path
        )
    assert raised.value.message == (
        "The loss is nan at step 3, where the learning rate was 0.004. Run the same command with "
        "--learning-rate 0.001 to go on from the checkpoint of step 3."
    )
    assert lines(tmp_path)[-1]["step"] == 3
    kept = torch.load(tmp_path / "checkpoint.pt")
    assert kept["step"] == 3 and all(t.isfinite().all() for t in kept["student"].values())
    assert run(load(tiny_llama), tmp_path, learning_rate=0.001).steps == 12


def test_weights_that_are_no_numbers_are_never_kept(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "set_rate", lambda optimizer, rate: set_rate(optimizer, math.inf))
    with pytest.raises(CompressError, match=r"A weight is no number any more at step 1.*instead\."):
        run(load(tiny_llama), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_minutes_are_a_budget_too(tiny_llama, tmp_path):
    report = run(load(tiny_llama), tmp_path, budget=Budget(minutes=0.01))
    assert 0.6 <= report.seconds < 3


def test_the_rate_goes_up_and_down_to_zero():
    rates = [rate_at(i / 100) for i in range(101)]
    assert rates[0] > 0 and max(rates) == 1.0 and rates[100] == 0.0
    top = rates.index(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_a_spoilt_model_is_recovered_from_what_it_was(tiny_llama, tmp_path):
    teacher, student = load(tiny_llama), load(tiny_llama)
    run(teacher, tmp_path / "teacher", budget=Budget(steps=30), learning_rate=0.01)
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        for layer in student.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0
    work = WorkFolder(tmp_path / "out", {"job": 1})
    report = recover(
        student,
        teacher,
        counting_texts(0, 80),
        counting_texts(1, 9),
        work=work,
        steps=20,
        batch_tokens=256,
        learning_rate=0.003,
    )
    assert report.held_out["forward-kl"] < 0.5 * report.held_out_before["forward-kl"]
    assert report.log == work.path / "training.jsonl"
    assert all(not p.requires_grad for p in teacher.parameters())
    work.done()
    assert not work.path.exists()
