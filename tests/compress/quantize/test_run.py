"""The folder that comes of quantizing: what is in it, what it answers, and when it is not written."""

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from c_kernels import needs_c_kernels

from penstock.compress.folder import new_folder
from penstock.compress.quantize import run
from penstock.compress.quantize.job import Done, QuantizeJob
from penstock.compress.quantize.run import quantize
from penstock.compress.texts import Example
from penstock.errors import CompressError, ModelLoadError
from penstock.models.loading import load_model

TEXT = "the list of files in a folder and how to extract an archive or search for text in it"


def examples(count: int = 80) -> list[Example]:
    draw = random.Random(9)
    return [Example(completion=" ".join(draw.choices(TEXT.split(), k=36))) for _ in range(count)]


def job_of(model: Path, output: Path, scheme: Any = "w8a8", **settings: Any) -> QuantizeJob:
    """With a gate that a model of random weights can pass: it is never sure of a token."""
    return QuantizeJob(
        str(model), output, scheme, "`texts.jsonl`", **{"most_kl": 0.5, "least_agreement": 0.5, **settings}
    )


def done(job: QuantizeJob, texts: Sequence[Example] | None = None, **options: Any) -> Done:
    return quantize(job, texts or examples(), progress=lambda part, done, of: None, **options)


def beside(output: Path) -> set[str]:
    return {path.name for path in output.parent.iterdir()}


def test_a_folder_is_served_as_it_says(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    found = done(job_of(tiny_llama, output))
    assert beside(output) == {"small"}
    served = load_model(str(output))
    assert served.precision == "w8a8" and served.linears["w8a8"] == 15
    report = json.loads((output / "quantization.json").read_text())
    assert report["passed"] and report["bytes"] == found.bytes < 0.6 * report["stored_bytes"]
    assert [layer["used"] for layer in report["layers"]] == ["w8a8"] * 15
    assert report["comparison"]["kl"]["value"] == found.comparison.kl.value < 0.05
    page = (output / "README.md").read_text()
    assert page.count("| w8a8 | gptq |") == 14 and "by force" not in page


def test_a_mixed_folder_keeps_its_budget_as_served(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "mixed"
    found = done(job_of(tiny_llama, output, "auto", most_kl=0.03))
    assert found.comparison.kl.value <= 0.03
    used = {record.used for record in found.records}
    assert len(used) > 1
    assert len(found.costs) == 26 and all(record.kl is not None for record in found.records if record.method)
    assert load_model(str(output)).precision in (*used, "mixed")


def test_what_fails_its_gate_is_not_written_unless_forced_and_then_says_so(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.compress.quantize import whole

    output = tmp_path / "small"
    strict = job_of(tiny_llama, output, "w4a16", most_kl=1e-6, least_agreement=1.0)
    with pytest.raises(CompressError, match=r"fails its gate and is not written: its KL .* --force"):
        done(strict)
    assert beside(output) == {".small.work"}
    monkeypatch.setattr(whole, "quantize_block", None)  # nothing is rounded twice
    found = done(replace(strict, force=True))
    assert found.comparison.kl.value > 1e-6
    assert beside(output) == {"small"}
    assert not json.loads((output / "quantization.json").read_text())["passed"]
    assert "Below the gate, and written by force" in (output / "README.md").read_text()


@needs_c_kernels
def test_int8_kv_is_part_of_what_is_judged_and_a_setting_of_the_folder(
    tiny_llama: Path, tmp_path: Path
) -> None:
    plain, with_kv = (
        done(job_of(tiny_llama, tmp_path / name, "w8a16", kv=kv)).comparison.kl.value
        for name, kv in (("plain", False), ("kv", True))
    )
    assert plain < with_kv
    assert json.loads((tmp_path / "kv" / "quantization.json").read_text())["kv"] == "int8"
    config = json.loads((tmp_path / "kv" / "config.json").read_text())
    assert config["penstock"]["kv_cache_dtype"] == "int8"


def test_what_could_not_be_judged_is_refused_before_anything_is_computed(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(run, "load_plain", never)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CompressError, match="device is 'cuda', but torch finds no CUDA device"):
        done(job_of(tiny_llama, tmp_path / "kv", device="cuda"))
    monkeypatch.setattr(run, "library", lambda: None)
    with pytest.raises(CompressError, match="--kv int8 is judged by what serves it, on a CPU the C kernels"):
        done(job_of(tiny_llama, tmp_path / "kv", kv=True, device="cpu"))


def test_without_texts_the_model_writes_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    job = replace(job_of(tiny_llama, tmp_path / "small"), context=24)
    found = quantize(job, None, progress=lambda part, done, of: None)
    assert found.tokens > 1024 and found.comparison.kl.value < 0.05


def test_speeds_are_measured_on_the_folder_and_reported(tiny_llama: Path, tmp_path: Path) -> None:
    from penstock.compress.evaluate.speed import Speed, measure_speeds
    from penstock.compress.quantize.report import summary

    def measure(folders: Mapping[str, Path]) -> Mapping[str, Sequence[Speed]]:
        assert list(folders) == ["as stored", "quantized"]
        assert all((folder / "model.safetensors").is_file() for folder in folders.values())
        return measure_speeds(
            {"as stored": lambda batch: 100.0, "quantized": lambda batch: 80.0 + batch * 10}, rounds=2
        )

    job = job_of(tiny_llama, tmp_path / "small")
    lines = list(summary(job, done(job, measure_speed=measure)))
    assert any(line.startswith("batch 1: SLOWER than the model as stored (0.90x;") for line in lines)
    assert any(line.startswith("batch 16: faster than the model as stored (2.40x;") for line in lines)


def test_other_texts_or_settings_begin_afresh(tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    with pytest.raises(CompressError):
        done(job_of(tiny_llama, output, least_agreement=1.0, most_kl=1e-9))
    kept = {path.name for path in (tmp_path / ".small.work").iterdir()}
    with pytest.raises(CompressError):
        done(job_of(tiny_llama, output, "w8a16", least_agreement=1.0, most_kl=1e-9))
    assert not kept & {path.name for path in (tmp_path / ".small.work").glob("block*")}


def test_a_cache_that_has_others_by_then_is_the_same_job_with_the_same_texts(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(tiny_llama, tmp_path / "small", cache="acme's", most_kl=1e-9)
    few, more = examples(80), examples(120)
    for texts in (few[:8], few):  # too few are not what it goes on with
        with pytest.raises(CompressError, match=r"too few|fails its gate"):
            done(job, texts)
    found = done(replace(job, force=True), more)
    assert "remove" in caplog.text and ".small.work to begin afresh" in caplog.text
    assert found.tokens == done(job_of(tiny_llama, tmp_path / "other"), few).tokens
    report = json.loads((tmp_path / "small/quantization.json").read_text())
    assert report["calibration"]["source"] == "80 `texts.jsonl`"


def test_a_full_disk_is_named_and_nothing_is_left_half_written(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.compress.quantize import layer

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layer, "save_file", full)
    with pytest.raises(CompressError, match=r"The disk of .*small is full"):
        done(job_of(tiny_llama, tmp_path / "small"))
    assert beside(tmp_path / "small") == {".small.work"}
    monkeypatch.undo()
    done(job_of(tiny_llama, tmp_path / "small"))
    assert beside(tmp_path / "small") == {"small"}


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_a_disk_must_have_room_for_the_result_not_for_the_model(
    scheme: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.compress.quantize import run

    expected: list[int] = []

    @contextmanager
    def noted(target: Path, *, force: bool, expected_bytes: int) -> Iterator[Path]:
        expected.append(expected_bytes)
        with new_folder(target, force=force, expected_bytes=expected_bytes) as staging:
            yield staging

    monkeypatch.setattr(run, "new_folder", noted)
    found = done(job_of(tiny_llama, tmp_path / "small", scheme))
    assert expected == [pytest.approx(found.bytes, rel=0.1)]


@pytest.mark.parametrize("scheme", ["w8a8", "auto"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_broken_model_is_named(name: str, scheme: str, tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = load_file(tmp_path / "broken/model.safetensors")
    weights[name][0] = torch.nan
    save_file(weights, tmp_path / "broken/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"/broken has weights that are not numbers .*, {name} for one"):
        done(job_of(tmp_path / "broken", tmp_path / "small", scheme))
    assert beside(tmp_path / "small") == {"broken"}


@pytest.mark.parametrize(("scheme", "used"), [("w8a8", "w8a8"), ("auto", "as stored")])
def test_experts_are_rounded_when_the_folder_is_loaded_and_the_report_says_so(
    scheme: str, used: str, tiny_llama: Path, tmp_path: Path
) -> None:
    from tiny_mixture import save_mixture

    folder = save_mixture("qwen3_moe", tmp_path / "mixture")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, folder)
    found = done(job_of(folder, tmp_path / "small", scheme))
    experts = [record for record in found.records if record.name.endswith(".experts")]
    assert [record.used for record in experts] == [used] * 2
    served = load_model(str(tmp_path / "small")).experts
    assert served == ({"grouped_int8_matmul": 2} if scheme == "w8a8" else {})
