"""A pruned model is an ordinary folder, nearer to its parent after recovery, and never there when it fails its gate."""

import json
from dataclasses import replace

import pytest
import torch

from penstock.compress.evaluate.estimate import Estimate
from penstock.compress.evaluate.speed import Speed
from penstock.compress.plain_model import load_plain
from penstock.compress.prune import plan
from penstock.compress.prune.job import PARENT, PRUNED, PruneJob
from penstock.compress.prune.report import summary
from penstock.compress.prune.run import prune
from penstock.compress.prune.structure import Size
from penstock.compress.texts import Example
from penstock.compress.training.batches import Batches
from penstock.errors import CompressError

EXAMPLES = [
    Example(prompt=f"archive {chr(97 + i % 26)}{chr(97 + i // 26)}", completion=f"tar {chr(97 + i % 26)} files")
    for i in range(120)
]  # fmt: skip


@pytest.fixture
def job(tiny_llama, tmp_path) -> PruneJob:
    return PruneJob(
        model=str(tiny_llama),
        output=tmp_path / "pruned",
        source="`questions.jsonl`",
        mlp=0.5,
        recovery_steps=10,
        learning_rate=0.01,
        most_kl=10,
        most_perplexity_change=10,
        device="cpu",
    )


def told(*_) -> None:
    pass


def weights(folder) -> dict[str, torch.Tensor]:
    return load_plain(str(folder)).module.state_dict()


def test_what_is_cut_out_is_gone_and_recovery_brings_it_nearer_to_its_parent(job):
    done = prune(replace(job, kv_groups=0.5), EXAMPLES, progress=told)
    assert done.size == Size(2, 64, 1) and done.parent_size == Size(2, 128, 2)
    assert done.after.kl.value < done.before.kl.value / 2 and not done.spoilt
    files = {file.name for file in job.output.iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "prune.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.jsonl",
    }
    assert [path.name for path in job.output.parent.iterdir()] == ["pruned"]
    module = load_plain(str(job.output)).module
    assert module.num_parameters() == done.parameters < done.parent_parameters
    report = json.loads((job.output / "prune.json").read_text())
    assert report["passed"] and report["recovery"]["steps"] == 10
    assert report["after_recovery"]["kl"]["value"] == done.after.kl.value
    for layer in report["layers"]:
        assert (layer["channels"], layer["groups"], len(layer["groups_out"])) == (64, 1, 1)
        assert 0 < layer["mlp_loss"] < 1 and 0 < layer["attention_loss"] < 1
    card = (job.output / "README.md").read_text()
    assert "64 of 128 MLP channels, 1 of 2 key-value groups" in card
    assert "10 steps" in card and "force" not in card


def test_a_result_that_fails_its_gate_is_not_there_and_forced_it_says_so_without_being_done_again(
    job, monkeypatch
):
    strict = replace(job, most_kl=1e-6)
    with pytest.raises(
        CompressError, match=r"not written: its KL divergence is .*, above 1e-06\. .* --force"
    ):
        prune(strict, EXAMPLES, progress=told)
    assert [path.name for path in job.output.parent.iterdir()] == [".pruned.work"]
    monkeypatch.setattr(Batches, "at", None)  # another step would fail
    done = prune(replace(strict, force=True), EXAMPLES, progress=told)
    assert done.recovery is not None and done.recovery.steps == 10
    assert "**Below the gate, and written by force: its KL" in (job.output / "README.md").read_text()
    assert not json.loads((job.output / "prune.json").read_text())["passed"]
    with pytest.raises(CompressError, match=r"its perplexity is .* above -50"):
        other = replace(job, most_perplexity_change=-0.5, recovery_steps=0)
        prune(replace(other, output=job.output.with_name("other")), EXAMPLES, progress=told)


def test_without_recovery_it_is_as_cut_and_no_log_is_there(job):
    done = prune(replace(job, mlp=None, layers=1, recovery_steps=0), EXAMPLES, progress=told)
    assert done.recovery is None
    assert done.after.kl.value == pytest.approx(done.before.kl.value, rel=1e-4)
    assert not (job.output / "training.jsonl").exists()
    gone, stayed = sorted(done.records, key=lambda record: not record.left_out)
    assert gone.left_out_kl is not None and not stayed.left_out
    assert f"| {gone.number} | left out |" in (job.output / "README.md").read_text()
    assert "There was no recovery." in (job.output / "README.md").read_text()


def test_what_recovery_makes_worse_is_written_as_it_was_cut(job):
    bare = replace(job, output=job.output.with_name("bare"), recovery_steps=0)
    prune(bare, EXAMPLES, progress=told)
    done = prune(replace(job, learning_rate=3.0, recovery_steps=2), EXAMPLES, progress=told)
    assert done.spoilt and done.after.kl.value > done.before.kl.value == done.written.kl.value
    figures = f"KL {done.before.kl.value:.4f} (after recovery {done.after.kl.value:.4f})"
    assert any(figures in line for line in summary(job, done))
    expected, found = weights(bare.output), weights(job.output)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not json.loads((job.output / "prune.json").read_text())["recovery"]["kept"]
    assert "so it is written as cut." in (job.output / "README.md").read_text()
    strict = replace(
        job, output=job.output.with_name("strict"), learning_rate=3.0, recovery_steps=2, most_kl=1e-6
    )
    with pytest.raises(
        CompressError, match=r"Recovery made it worse: remove .*\.strict\.work and give a lower"
    ):
        prune(strict, EXAMPLES, progress=told)


def test_an_interrupted_job_goes_on_to_the_same_weights(job, tmp_path, monkeypatch):
    whole = replace(job, output=tmp_path / "whole")
    prune(whole, EXAMPLES, progress=told)
    at = Batches.at

    def interrupted(self: Batches, step: int):
        if step == 5:
            raise KeyboardInterrupt
        return at(self, step)

    monkeypatch.setattr("penstock.compress.training.loop.SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(Batches, "at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(job, EXAMPLES, progress=told)
    assert not job.output.exists()
    monkeypatch.setattr(Batches, "at", at)
    monkeypatch.setattr("penstock.compress.prune.plan.Pruner", None)  # what is cut is cut
    prune(job, EXAMPLES, progress=told)
    expected, found = weights(whole.output), weights(job.output)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_size_is_met_by_some_combination(job):
    done = prune(replace(job, mlp=None, size=0.8, recovery_steps=0), EXAMPLES, progress=told)
    assert done.size != done.parent_size
    assert 0.6 < done.parameters / done.parent_parameters <= 0.8


def test_a_speed_up_is_measured_before_and_after(job):
    asked = []

    def measure(folders):
        asked.append(list(folders))
        speeds = {}
        for name, folder in folders.items():
            config = load_plain(str(folder)).module.config
            time = 1 + config.num_hidden_layers * config.intermediate_size / 128
            ratio = Estimate(3 / time, 3 / time, 3 / time, 9)
            speeds[name] = [Speed(batch, ratio, ratio) for batch in (1, 16)]
        return speeds

    fast = replace(job, mlp=None, speed_up=1.5, recovery_steps=0)

    def slower_in_the_end(folders):
        measured = measure(folders)
        if PRUNED in measured:
            ratio = Estimate(1.3, 1.2, 1.4, 9)
            measured[PRUNED] = [Speed(batch, ratio, ratio) for batch in (1, 16)]
        return measured

    with pytest.raises(CompressError, match=r"1\.30x \[1\.20, 1\.40\] as fast, below 1\.5x"):
        prune(fast, EXAMPLES, progress=told, measure_speed=slower_in_the_end)
    assert not job.output.exists()
    done = prune(fast, EXAMPLES, progress=told, measure_speed=measure)
    assert asked == [
        ["whole", "half its layers", "half its channels", "one key-value group"],
        [PARENT, PRUNED],
        [PARENT, PRUNED],  # the plan is kept
    ]
    assert done.size.layers * done.size.channels <= 128 and done.size.groups == 2
    assert (
        "as fast as its parent (2 tokens/s, parent 1; 1.5x was asked for)"
        in (job.output / "README.md").read_text()
    )


def test_texts_may_be_written_by_the_model_itself(job, monkeypatch):
    monkeypatch.setattr("penstock.compress.prune.run.SYNTHETIC_TEXTS", 40)
    monkeypatch.setattr("penstock.compress.prune.run.SYNTHETIC_TOKENS", 12)
    done = prune(replace(job, recovery_steps=2), None, progress=told)
    assert (done.trained, done.texts) == (36, 4)


def test_what_the_model_wrote_by_itself_is_written_once(job, monkeypatch):
    """On another machine, or with other threads, it would write something else."""
    monkeypatch.setattr("penstock.compress.prune.run.SYNTHETIC_TEXTS", 40)
    monkeypatch.setattr("penstock.compress.prune.run.SYNTHETIC_TOKENS", 12)
    job = replace(job, recovery_steps=2)
    with pytest.raises(CompressError, match="fails its gate"):
        prune(replace(job, most_kl=1e-9), None, progress=told)
    monkeypatch.setattr("penstock.compress.own_texts.synthetic_texts", None)
    assert prune(job, None, progress=told).trained == 36


def test_a_full_disk_costs_no_step(job, monkeypatch):
    def no_space(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full, pytest.raises(CompressError, match=r"disk of .*pruned is full"):
        full.setattr("penstock.compress.prune.run.save_model", no_space)
        prune(job, EXAMPLES, progress=told)
    assert [path.name for path in job.output.parent.iterdir()] == [".pruned.work"]
    monkeypatch.setattr(Batches, "at", None)
    prune(job, EXAMPLES, progress=told)
    assert [path.name for path in job.output.parent.iterdir()] == ["pruned"]


def test_a_model_that_reads_back_otherwise_is_refused(job, monkeypatch):
    """What layers compute must follow from the config alone: here it does not."""

    def spoilt(folder, module, text):
        torch.nn.init.normal_(module.model.layers[0].mlp.down_proj.weight)
        return check(folder, module, text)

    check = plan._check_read_back
    monkeypatch.setattr(plan, "_check_read_back", spoilt)
    with pytest.raises(CompressError, match="once written and read back it computes something else"):
        prune(job, EXAMPLES, progress=told)
    assert not job.output.exists()
