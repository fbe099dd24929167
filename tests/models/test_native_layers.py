"""Layers in C stand in where they give what the model's own gave, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.config import SparseAttention
from penstock.kernels.cpu.native.library import library
from penstock.kernels.span import Span
from penstock.models import loading
from penstock.models.attention_hook import StepContext
from penstock.models.cpu_kv_cache import CpuKVCache
from penstock.models.loading import LoadedModel, load_model
from penstock.scheduler import Engine, EngineConfig, SamplingParams

pytestmark = [
    pytest.mark.skipif(library() is None, reason="no compiler, or no AVX2"),
    pytest.mark.usefixtures("chip"),
]
WINDOW = 24
COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 72,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SERVED: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"num_key_value_heads": 1},
    "qwen2 with window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"},
}
# Other norms, factors or parts, some under the same names.
OTHERS: dict[str, dict[str, Any]] = {
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "olmo2": {},
    "phi3": {},
    "gpt_neox": {},
    "cohere": {},
}


def write(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **(COMMON | settings))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = parameter.data + 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return folder


def by_modules(monkeypatch: pytest.MonkeyPatch, folder: Path) -> LoadedModel:
    with monkeypatch.context() as patch:
        patch.setattr(loading, "stack_layers", lambda *args: 0)
        return load_model(str(folder), quantize="w8a8")


def logits(model: LoadedModel, rows: list[tuple[int, int]]) -> torch.Tensor:
    """Of one sequence of 100 tokens in chunks: (first position, count)."""
    cache = CpuKVCache(model.layers, 5, 32, torch.float32)
    tokens = torch.randint(0, 320, (1, 100), generator=torch.Generator().manual_seed(1))
    found = []
    for first, count in rows:
        positions = torch.arange(first, first + count)[None]
        spans = [Span([3, 1, 4, 2], first, count)]
        with torch.inference_mode():
            result = model.module(
                input_ids=tokens[:, positions[0]],
                position_ids=positions,
                use_cache=False,
                penstock=StepContext(cache, cache.prepare(spans)),
            )
        found.append(result.logits[0])
    return torch.cat(found)


@pytest.mark.parametrize("name", SERVED)
def test_served_layers_give_what_the_model_gave(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path, name, SERVED[name])
    served, own = load_model(str(folder), quantize="w8a8"), by_modules(monkeypatch, folder)
    assert served.fused == {"layers": 3} and own.fused == {}
    ours, theirs = logits(served, [(0, 100)]), logits(own, [(0, 100)])
    assert float((ours - theirs).norm() / theirs.norm()) < 0.01
    # Activations that round to the neighbour are rare: most rows differ by what float32 rounds.
    error = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    assert float(error.median()) < 1e-4
    for rows in ([(i, 1) for i in range(100)], [(0, 1), (1, 70), (71, 29)]):
        assert torch.equal(logits(served, rows), ours)


@pytest.mark.parametrize("name", OTHERS)
def test_others_keep_their_own_code(name: str, tmp_path: Path):
    assert "layers" not in load_model(str(write(tmp_path, name, OTHERS[name])), quantize="w8a8").fused


def test_a_layer_that_computes_something_else_keeps_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    folder = write(tmp_path, "llama", {})
    monkeypatch.setattr(
        LlamaMLP,
        "forward",
        lambda self, x: 1.05 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)),
    )
    assert load_model(str(folder), quantize="w8a8").fused == {}


def test_other_precisions_keep_their_code(tmp_path: Path):
    folder = str(write(tmp_path, "llama", {}))
    for precision in ("none", "w8a16"):
        assert load_model(folder, quantize=precision).fused == {}


def test_sparse_rows_and_dense_ones_are_served_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Layer by layer then, and of the same bits: dense requests beside sparse ones have what they have alone."""
    folder = write(tmp_path, "llama", {"head_dim": 16})
    config = EngineConfig(
        model=str(folder),
        quantize="w8a8",
        max_num_batched_tokens=64,
        sparse_attention=SparseAttention(mass=0.9, min_context=64),
    )
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 320, (90,), generator=generator).tolist() for _ in range(4)]

    def run(engine: Engine, which: list[int], sparse: list[int]) -> dict[str, list[Any]]:
        for i in which:
            asked = None if i in sparse else False
            params = SamplingParams(
                temperature=0, max_tokens=30, ignore_eos=True, logprobs=1, sparse_attention=asked
            )
            engine.add_request(str(i), prompts[i], params)
        found: dict[str, list[Any]] = {str(i): [] for i in which}
        while engine.has_work():
            for delta in engine.step():
                found[delta.request_id] += list(zip(delta.token_ids, delta.logprobs or [], strict=False))
        return found

    together = run(Engine(config), [0, 1, 2, 3], sparse=[1, 3])
    alone = run(Engine(EngineConfig(model=str(folder), quantize="w8a8")), [0, 2], sparse=[])
    assert together["0"] == alone["0"] and together["2"] == alone["2"]
    with monkeypatch.context() as patch:
        patch.setattr(loading, "stack_layers", lambda *args: 0)
        by_torch = run(Engine(config), [1, 3], sparse=[1, 3])
    assert [token for token, _ in together["1"]] == [token for token, _ in by_torch["1"]]
