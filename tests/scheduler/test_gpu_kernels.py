"""The engine on the GPU's kernels: the same greedy tokens as on the CPU's. Without a GPU Triton's interpreter runs them."""

from pathlib import Path

import pytest
import torch
from c_kernels import needs_c_kernels
from tiny_mixture import save_mixture

from penstock import Engine, EngineConfig, SamplingParams
from penstock.config import SparseAttention
from penstock.errors import ModelLoadError
from penstock.models.quantized_experts import QuantizedExperts
from penstock.scheduler.outputs import Completion

DEVICE = "cuda" if torch.cuda.is_available() else "interpreter"
SHORT = [[5, 9, 300, 17], [7] * 35]
PROMPTS = [[5, 9, 300, 17], list(range(3, 80)), [7] * 65, [250, 3]]


def complete(
    model: Path, params: SamplingParams, prompts: list[list[int]] = PROMPTS, **settings: object
) -> list[Completion]:
    sizes = {"max_model_len": 192, "kv_cache_tokens": 768, "max_num_batched_tokens": 48}
    engine = Engine(EngineConfig(model=str(model), dtype="float32", **sizes, **settings))  # type: ignore[arg-type]
    results = engine.generate(prompts, params, tokenizer=_NoText(), progress=False)
    engine.check()
    return [completion for result in results for completion in result.completions]


def generate(model: Path, device: str, **settings: object) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    return [completion.token_ids for completion in complete(model, params, device=device, **settings)]


def best_logprobs(model: Path, **settings: object) -> list[float]:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=1)
    completions = complete(model, params, **settings)
    return [completion.logprobs[0].top[0][1] for completion in completions if completion.logprobs]


class _NoText:
    """Token ids are all that is compared."""

    def decode(self, token_ids: list[int]) -> str:
        return ""


@pytest.mark.parametrize("quantize", ["none", "w8a8"])
def test_the_same_greedy_tokens_as_on_the_cpu(tiny_llama, quantize):
    assert generate(tiny_llama, DEVICE, quantize=quantize) == generate(tiny_llama, "cpu", quantize=quantize)


@pytest.mark.parametrize("quantize", ["w8a16", "w4a16"])
def test_weights_alone_quantized_are_the_same_on_both(tiny_llama, quantize):
    """A CPU rounds activations to bf16 there, so log-probabilities are compared."""
    there = best_logprobs(tiny_llama, device="cpu", quantize=quantize)
    here = best_logprobs(tiny_llama, device=DEVICE, quantize=quantize)
    assert here == pytest.approx(there, abs=0.05)
    assert here != pytest.approx(best_logprobs(tiny_llama, device="cpu"), abs=1e-6)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=needs_c_kernels), DEVICE])
def test_int8_kv_changes_little(tiny_llama, device):
    """The best token's log-probability after each prompt; a token's own choice may be a close call."""
    exact = best_logprobs(tiny_llama, device="cpu")
    quantized = best_logprobs(tiny_llama, device=device, kv_cache_dtype="int8")
    assert exact != quantized, "something was quantized"
    assert quantized == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_give_the_same_greedy_tokens_as_on_the_cpu(kind, tmp_path):
    model = save_mixture(kind, tmp_path)
    settings = {"quantize": "w8a8", "prompts": SHORT}
    assert generate(model, DEVICE, **settings) == generate(model, "cpu", **settings)


def test_experts_are_served_by_the_grouped_kernel_and_say_so(tmp_path):
    """Transposed ones with biases and a gate of their own."""
    model = save_mixture("gpt_oss", tmp_path)
    engine = Engine(EngineConfig(model=str(model), device=DEVICE, quantize="w8a8", max_model_len=192))
    assert "experts of 2 layers grouped_int8_matmul (w8a8)" in engine.info.kernels
    experts = [m for m in engine.runner.model.module.modules() if isinstance(m, QuantizedExperts)]
    assert [type(own.up).__module__ for own in experts] == ["penstock.kernels.gpu.grouped_int8_matmul"] * 2


@pytest.mark.parametrize("quantize", ["w8a16", "w4a16"])
def test_experts_whose_weights_alone_are_quantized(quantize, tmp_path):
    """A CPU rounds activations to bf16 there, so that a random router may choose otherwise: the median is compared."""
    model = save_mixture("mixtral", tmp_path)
    there = best_logprobs(model, device="cpu", quantize=quantize)
    here = best_logprobs(model, device=DEVICE, quantize=quantize)
    differences = sorted(abs(a - b) for a, b in zip(here, there, strict=True))
    assert len(differences) == len(PROMPTS) and differences[1] < 0.1, differences


LONG = [[(7 * i + j) % 300 + 5 for i in range(length)] for j, length in enumerate((330, 30))]


def decode_sparsely(
    model: Path,
    sparse: SparseAttention | None,
    device: str = DEVICE,
    prompts: list[list[int]] = LONG,
    **settings: object,
) -> tuple[Engine, list[list[int]]]:
    sizes = {"max_model_len": 448, "kv_cache_tokens": 1024, "max_num_batched_tokens": 256, **settings}
    engine = Engine(
        EngineConfig(model=str(model), dtype="float32", device=device, sparse_attention=sparse, **sizes)  # type: ignore[arg-type]
    )
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    results = engine.generate(prompts, params, tokenizer=_NoText(), progress=False)
    engine.check()
    return engine, [completion.token_ids for result in results for completion in result.completions]


def test_sparse_decodes(tiny_llama):
    _, expected = decode_sparsely(tiny_llama, None, device="cpu")
    engine, found = decode_sparsely(tiny_llama, SparseAttention(mass=0.9999999, min_context=300))
    assert found == expected
    engine, _ = decode_sparsely(tiny_llama, SparseAttention(mass=0.3, min_context=300))
    stats = engine.stats.sparse
    # One long prompt, two layers of two KV heads; the first of three tokens comes from the prompt itself.
    assert stats.rows == stats.sampled_rows == 2 * 2 * 2
    assert 0 < stats.kept_tokens < stats.context_tokens and stats.estimated_mass >= 0.3 * stats.rows


def test_sparse_decodes_by_summaries_of_int8_pages(tiny_llama):
    sparse = SparseAttention(mass=0.3, min_context=300, estimate="mean_std")
    stats = decode_sparsely(tiny_llama, sparse, kv_cache_dtype="int8")[0].stats.sparse
    assert stats.rows == 8 and stats.sampled_rows == 0 and stats.kept_tokens < stats.context_tokens


def test_a_bound_on_what_decodes_drop(tiny_llama):
    sparse = SparseAttention(mass=0.3, min_context=300, estimate="min_max")
    stats = decode_sparsely(tiny_llama, sparse)[0].stats.sparse
    # One step and layer of the first 512: one row of two KV heads.
    assert stats.bounded_rows == 2 and 0 < stats.dropped_bound <= 2


def test_sparse_prompts(tiny_llama):
    """Of five blocks the last may drop one, and does; so it does on the CPU, and the tokens are the same."""
    sparse = SparseAttention(mass=1.0, prompt_mass=0.05, min_context=256)
    sizes = {"max_num_batched_tokens": 128, "max_num_seqs": 2}
    engine, found = decode_sparsely(tiny_llama, sparse, prompts=[LONG[0][:262]], **sizes)
    there, expected = decode_sparsely(tiny_llama, sparse, device="cpu", prompts=[LONG[0][:262]])
    stats, theirs = engine.stats.sparse, there.stats.sparse
    assert stats.prompt_blocks == theirs.prompt_blocks == 2 * 2
    assert stats.prompt_context_tokens == theirs.prompt_context_tokens == 4 * 262
    assert stats.prompt_kept_tokens == theirs.prompt_kept_tokens == 4 * (262 - 64)
    assert stats.prompt_estimated_mass == pytest.approx(theirs.prompt_estimated_mass, abs=0.01)
    assert found == expected


def test_what_the_gpu_cannot_do_is_refused_by_name(tiny_llama):
    with pytest.raises(ModelLoadError, match="block_size is 32; on a GPU a block is a page of 64 tokens"):
        generate(tiny_llama, DEVICE, block_size=32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_silent_cpu(tiny_llama):
    with pytest.raises(ModelLoadError, match="torch finds no CUDA device"):
        generate(tiny_llama, "cuda")
