"""A folder of quantized weights says the same to transformers, by the library that defines the format, and to Penstock."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from c_kernels import needs_c_kernels
from library_artefact import read_by_the_library
from safetensors.torch import load_file
from tiny_mixture import save_mixture
from torch import nn
from transformers import AutoModelForCausalLM

from penstock.compress.compressed_tensors import write_compressed_tensors
from penstock.compress.evaluate.scorers import PlainScorer, ServedScorer
from penstock.compress.plain_model import PlainModel, load_plain
from penstock.compress.quantized_tensor import QuantizedTensor
from penstock.models import loading
from penstock.models.loading import load_model
from penstock.scheduler import Engine, EngineConfig, SamplingParams

IDS = [(11 * place) % 300 + 5 for place in range(80)]


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> PlainModel:
    return load_plain(str(tiny_llama))


def linears(plain: PlainModel) -> dict[str, nn.Linear]:
    found = {name: part for name, part in plain.module.named_modules() if isinstance(part, nn.Linear)}
    del found["lm_head"]
    return found


def rounded(plain: PlainModel, choose: Callable[[str], tuple[Any, int | None]]) -> dict[str, QuantizedTensor]:
    return {
        name: QuantizedTensor.nearest(linear.weight.detach(), *choose(name))
        for name, linear in linears(plain).items()
    }


def written(folder: Path, plain: PlainModel, quantized: dict[str, QuantizedTensor], **settings: Any) -> Path:
    folder.mkdir()
    write_compressed_tensors(folder, plain, quantized, **settings)
    return folder


CHOICES: dict[str, Callable[[str], tuple[Any, int | None]]] = {
    "w8a8": lambda name: ("w8a8", None),
    "w8a16": lambda name: ("w8a16", None),
    "w4a16": lambda name: ("w4a16", 32),
    "mixed": lambda name: ("w4a16", 64) if "mlp" in name else ("w8a8" if ".0." in name else "w8a16", None),
}


def nll(logits: torch.Tensor) -> float:
    return float(nn.functional.cross_entropy(logits[:-1], torch.tensor(IDS[1:])))


def logits_of(scorer: PlainScorer | ServedScorer) -> torch.Tensor:
    return torch.cat([part.clone() for part in scorer.logits(IDS, 128)])


# On a CPU activations of weight-only products are rounded to bf16; what transformers computes in float32 is exact.
@pytest.mark.parametrize(
    ("kind", "error"), [("w8a8", 1e-4), ("w8a16", 0.02), ("w4a16", 0.02), ("mixed", 0.03)], ids=str
)
def test_transformers_and_penstock_read_the_same_model(kind, error, plain, tmp_path):
    quantized = rounded(plain, CHOICES[kind])
    folder = written(tmp_path / kind, plain, quantized)
    module = read_by_the_library(folder)
    there = logits_of(PlainScorer(module, "theirs"))
    here = logits_of(ServedScorer(load_model(str(folder)), "ours"))
    assert float((here - there).norm() / there.norm()) < error
    assert nll(here) == pytest.approx(nll(there), rel=error / 2)
    as_it_is = nll(logits_of(PlainScorer(AutoModelForCausalLM.from_pretrained(folder), "")))
    assert nll(here) == pytest.approx(as_it_is, rel=0.01)
    # Not only near each other: what transformers multiplies by is what was handed over.
    for name, own in quantized.items():
        assert torch.equal(module.get_submodule(name).weight.float(), own.dequantized()), name


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_rounded_to_nearest_it_answers_as_if_rounded_when_loaded(scheme, plain, tmp_path):
    folder = written(tmp_path / "stored", plain, rounded(plain, CHOICES[scheme]), output_layer=scheme)
    on_the_fly = load_model(str(plain.path), quantize=scheme)
    stored = load_model(str(folder))
    assert stored.linears == on_the_fly.linears == {scheme: 15}
    assert stored.fused == on_the_fly.fused and stored.num_parameters == on_the_fly.num_parameters
    assert torch.equal(logits_of(ServedScorer(stored, "")), logits_of(ServedScorer(on_the_fly, "")))
    assert stored.fingerprint != on_the_fly.fingerprint


def test_an_engine_serves_it_and_says_how(plain, tmp_path):
    folder = written(tmp_path / "mixed", plain, rounded(plain, CHOICES["mixed"]))
    engine = Engine(EngineConfig(model=str(folder), kv_cache_tokens=2048))
    assert engine.info.precision == "mixed"
    for said in (
        "4 linears int8_matmul (w8a8)",
        "6 linears weight_only_matmul (w4a16)",
        "1 linear torch (as stored)",
    ):
        assert said in engine.info.kernels
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    (result,) = engine.generate([IDS], params, progress=False)
    alone = logits_of(ServedScorer(load_model(str(folder)), ""))[-1]
    assert result.completions[0].token_ids[0] == int(alone.argmax())


def test_large_models_are_written_in_shards(plain, tmp_path):
    quantized = rounded(plain, CHOICES["w4a16"])
    whole = written(tmp_path / "whole", plain, quantized)
    parts = written(tmp_path / "parts", plain, quantized, shard_bytes=40_000)
    files = sorted(file.name for file in parts.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    weight_map = json.loads((parts / "model.safetensors.index.json").read_text())["weight_map"]
    expected, found = load_file(whole / "model.safetensors"), {}
    for name, file in weight_map.items():
        found[name] = load_file(parts / file)[name]
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    largest = max(tensor.numel() * tensor.element_size() for tensor in expected.values())
    assert max((parts / file).stat().st_size for file in files) < max(40_000, largest) + 4096
    assert torch.equal(
        logits_of(ServedScorer(load_model(str(parts)), "")),
        logits_of(ServedScorer(load_model(str(whole)), "")),
    )


def test_everything_else_is_written_as_it_is(plain, tmp_path):
    """A method may have changed norms, too; a tensor that has two names is written once."""
    own = load_plain(str(plain.path))
    with torch.no_grad():
        own.module.model.norm.weight.mul_(1.5)
        own.module.lm_head.weight = own.module.model.embed_tokens.weight
    own.module.config.tie_word_embeddings = True
    folder = written(tmp_path / "changed", own, rounded(plain, CHOICES["w8a8"]))
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors["model.norm.weight"], own.module.model.norm.weight)
    assert "model.embed_tokens.weight" in tensors and "lm_head.weight" not in tensors
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (plain.path / name).read_bytes()
    model = load_model(str(folder))
    assert torch.equal(model.module.lm_head.weight, own.module.model.embed_tokens.weight)


@needs_c_kernels
def test_int8_kv_is_kept_where_it_can_be(plain, tmp_path, caplog, monkeypatch):
    folder = written(tmp_path / "kv", plain, rounded(plain, CHOICES["w4a16"]), int8_kv=True)
    for device in ("interpreter", "cpu"):
        kept = load_model(str(folder), device=device)
        plain_kv = load_model(str(folder), device=device, kv_cache_dtype="none")
        assert (kept.kv_cache_dtype, plain_kv.kv_cache_dtype) == ("int8", "auto")
        assert kept.fingerprint != plain_kv.fingerprint
    monkeypatch.setattr(loading, "library", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert load_model(str(folder), device="cpu").kv_cache_dtype == "auto"
    assert "INT8 KV, which on a CPU takes the C kernels" in caplog.text
    AutoModelForCausalLM.from_pretrained(folder)


def test_experts_are_rounded_when_they_are_loaded(tiny_llama, tmp_path):
    folder = save_mixture("qwen3_moe", tmp_path / "mixture")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_llama / name, folder / name)
    source = load_plain(str(folder))
    quantized = rounded(source, lambda name: ("w8a8", None))
    folder = written(
        tmp_path / "stored",
        source,
        {name: own for name, own in quantized.items() if "self_attn" in name},
        output_layer="w8a8",
        experts="w8a8",
    )
    on_the_fly, stored = load_model(str(source.path), quantize="w8a8"), load_model(str(folder))
    assert stored.experts == on_the_fly.experts == {"grouped_int8_matmul": 2}
    assert stored.linears == on_the_fly.linears
    assert torch.equal(logits_of(ServedScorer(stored, "")), logits_of(ServedScorer(on_the_fly, "")))


def test_a_draft_model_may_be_stored_in_another_precision_than_its_target(plain, tmp_path):
    folder = written(tmp_path / "draft", plain, rounded(plain, CHOICES["w8a8"]))
    engine = Engine(EngineConfig(model=str(plain.path), draft_model=str(folder), kv_cache_tokens=4096))
    assert engine.info.precision == "none" and "W8A8" in engine.info.draft_model


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.layers.0.mlp.gate": "model.layers.0.mlp.up_proj"}, "mlp.gate is no linear layer"),
        (
            {"model.layers.0.mlp.down_proj": "model.layers.0.mlp.up_proj"},
            r"matrix is \[128, 64\], the layer \[64, 128\]",
        ),
        ({"lm_head": "model.layers.0.mlp.up_proj"}, "output_layer"),
    ],
)
def test_what_does_not_belong_to_the_model_is_refused(changes, told, plain, tmp_path):
    quantized = rounded(plain, CHOICES["w8a8"])
    with pytest.raises(ValueError, match=told):
        written(
            tmp_path / "wrong", plain, quantized | {name: quantized[like] for name, like in changes.items()}
        )
