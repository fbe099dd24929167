"""What loads, loads whole; what would be served wrongly is refused by name; fingerprints know every byte."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from c_kernels import needs_c_kernels
from torch import nn
from transformers.models.gptj import modeling_gptj
from transformers.models.mistral import modeling_mistral

from penstock.compress.plain_model import load_plain
from penstock.config import SparseAttention
from penstock.errors import ConfigError, ModelLoadError
from penstock.kernels.dispatch import choose_backend
from penstock.kernels.span import Span
from penstock.models import loading
from penstock.models.attention_hook import ProbeContext, StepContext, attention_forward, is_computed
from penstock.models.cpu_kv_cache import CpuKVCache
from penstock.models.fingerprint import fingerprint
from penstock.models.loading import load_model
from penstock.models.quantized_linear import QuantizedLinear, quantize_linears
from penstock.scheduler import Engine, EngineConfig, SamplingParams

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def save(kind: str, folder: Path, **settings: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(COMMON | settings))).save_pretrained(
        folder
    )
    return folder


def edit_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.fixture
def llama_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({}, "BloomForCausalLM computes attention by itself"),
    "mamba": ({"state_size": 8}, "MambaForCausalLM has a layer of type .linear_attention."),
    "falcon": ({"alibi": True}, "FalconAttention adds a bias or a mask of its own"),
    "mpt": ({}, "MptAttention adds a bias or a mask of its own"),
    "openai-gpt": ({}, "multiplies its attention scores by more than one number"),
    "bert": ({}, "BertSelfAttention is not causal"),
    "big_bird": ({"is_decoder": True}, "BigBirdForCausalLM attends in another way to few tokens"),
    "megatron-bert": ({}, "MegatronBertForCausalLM masks what layer 0 sees by another rule"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "'conv'"),
    "recurrent_gemma": ({}, "RecurrentGemmaForCausalLM"),
    "phimoe": ({"sliding_window": 24, "num_local_experts": 2}, "sliding window of 24 tokens.*does not tell"),
    "moshi": (
        {"sliding_window": 24, "ffn_dim": 48, "head_dim": 8},
        "sliding window of 24 tokens.*does not tell",
    ),
    "xmod": ({"is_decoder": True}, "XmodForCausalLM cannot compute two tokens: Input language unknown"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_out_of_reach_is_refused_by_name(kind: str, tmp_path: Path):
    settings, message = REFUSED[kind]
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(save(kind, tmp_path, **settings)))


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path):
    folder = save("phimoe", tmp_path, sliding_window=128, num_local_experts=2)
    assert load_model(str(folder)).max_model_len == 128


def test_chunks_of_attention_are_served_up_to_the_first_ones_end(tmp_path: Path):
    settings = {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
    folder = save("llama4_text", tmp_path, attention_chunk_size=64, **settings)
    assert load_model(str(folder)).max_model_len == 64


def test_what_passes_between_tokens_beside_attention_is_refused(tmp_path: Path):
    """As if a model with attention of its own had a convolution too."""
    folder = save("gptj", tmp_path, rotary_dim=4)
    forward = modeling_gptj.GPTJMLP.forward

    def with_the_token_before(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return forward(self, hidden + hidden.roll(1, dims=1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_gptj.GPTJMLP, "forward", with_the_token_before)
        with pytest.raises(ModelLoadError, match="from token to token beside attention"):
            load_model(str(folder))
    load_model(str(folder))


def test_positions_that_cannot_be_told_are_refused(tmp_path: Path):
    folder = save("bart", tmp_path, **BART)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "feed_positions", lambda module: None)
        with pytest.raises(ModelLoadError, match="does not let its positions be told"):
            load_model(str(folder))
    load_model(str(folder))


CAUSAL: dict[str, tuple[Callable[..., Any], int | None]] = {
    "causal": (lambda b, h, q, k: k <= q, None),
    "window": (lambda b, h, q, k: (k <= q) & (k > q - 24), 24),
    "window beyond the context": (lambda b, h, q, k: (k <= q) & (k > q - 1000), None),
    "of two given tokens": (lambda b, h, q, k: (k <= q) & torch.tensor([True, True])[k], None),
}
OTHERWISE: dict[str, tuple[Callable[..., Any], int | None]] = {
    "sees what follows": (lambda b, h, q, k: k <= q + 1, None),
    "window not told": (lambda b, h, q, k: (k <= q) & (k > q - 999), None),
    "window told only": (lambda b, h, q, k: k <= q, 24),
    "one more": (lambda b, h, q, k: (k <= q) & (k >= q - 24), 24),
    "one less": (lambda b, h, q, k: (k <= q) & (k > q - 23), 24),
    "chunks": (lambda b, h, q, k: (k <= q) & (k // 24 == q // 24), None),
    "chunks as a window": (lambda b, h, q, k: (k <= q) & (k // 24 == q // 24), 24),
    "prefix": (lambda b, h, q, k: (k <= q) | (k < 300), None),
    "of two given tokens, other": (lambda b, h, q, k: (k <= q) & torch.tensor([True, False])[k], None),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_mask_that_attention_computes_is_known(name: str):
    assert is_computed(*CAUSAL[name], context_length=1000)


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_mask_by_another_rule_is_noticed(name: str):
    assert not is_computed(*OTHERWISE[name], context_length=1000)


def test_a_model_that_masks_by_another_rule_is_refused(tmp_path: Path):
    """As if a model had a longer window than it tells attention of."""
    folder = save("mistral", tmp_path, sliding_window=24)
    create = modeling_mistral.create_sliding_window_causal_mask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            modeling_mistral,
            "create_sliding_window_causal_mask",
            lambda config, **given: create(config=LongerWindow(config), **given),
        )
        with pytest.raises(ModelLoadError, match=r"masks what layer 0 sees.*a sliding window of 24 tokens"):
            load_model(str(folder))
    load_model(str(folder))


class LongerWindow:
    sliding_window = 25

    def __init__(self, config: Any) -> None:
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def test_an_unknown_attention_argument_is_refused_by_name():
    module = nn.Module()
    module.layer_idx = 0
    q = k = v = torch.zeros(1, 2, 2, 4)
    for name, value in {"position_bias": torch.zeros(2, 2), "block_indices": [1], "new_thing": 0.5}.items():
        with pytest.raises(ModelLoadError, match=name):
            attention_forward(module, q, k, v, None, penstock=ProbeContext(), **{name: value})
    attention_forward(module, q, k, v, None, penstock=ProbeContext(), position_bias=None, dropout=0.0)
    with pytest.raises(ModelLoadError, match="mask of its own"):
        attention_forward(module, q, k, v, torch.zeros(2, 2), penstock=ProbeContext())
    with pytest.raises(ModelLoadError, match="not causal"):
        attention_forward(module, q, k, v, None, penstock=ProbeContext(), is_causal=False)


def test_a_stored_quantized_model_is_refused(llama_copy: Path):
    edit_config(llama_copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelLoadError, match=r"stored quantized.*w8a8"):
        load_model(str(llama_copy))


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(ModelLoadError, match="nothing-here"):
        load_model(str(tmp_path / "nothing-here"))


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncate_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _garble_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def _drop_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _reshape(folder: Path) -> None:
    edit_config(folder, intermediate_size=64)


def _break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{ not json")


def _remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _unknown_type(folder: Path) -> None:
    edit_config(folder, model_type="llama99")


@pytest.mark.parametrize(
    "break_it",
    [
        _remove_weights,
        _truncate_weights,
        _garble_header,
        _drop_a_tensor,
        _reshape,
        _break_config,
        _remove_config,
        _unknown_type,
    ],
)
def test_a_broken_folder_is_refused(break_it: Callable[[Path], None], llama_copy: Path):
    break_it(llama_copy)
    with pytest.raises(ModelLoadError, match="copy"):
        load_model(str(llama_copy))


def _as_encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make_it", "says"),
    [
        (_drop_a_tensor, "lacks 1 of the weights of LlamaForCausalLM, model.layers.1.mlp.up_proj.weight among"),
        (_as_encoder, "holds a BertModel, which is no causal language model: it lacks"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("load", [load_model, load_plain])
def test_missing_weights_are_one_line(
    load: Callable[[str], object], make_it: Callable[[Path], None], says: str, llama_copy: Path
):
    """transformers would print a table of them before."""
    printed: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = printed.append  # type: ignore[method-assign]
    make_it(llama_copy)
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    try:
        with pytest.raises(ModelLoadError, match=says):
            load(str(llama_copy))
    finally:
        logger.removeHandler(handler)
    assert not printed and logger.level == level


def test_no_pickles_are_executed(llama_copy: Path):
    import os
    import pickle

    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(llama_copy / "executed"),)

    (llama_copy / "model.safetensors").unlink()
    (llama_copy / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ModelLoadError):
        load_model(str(llama_copy))
    assert not (llama_copy / "executed").exists()


def test_what_is_loaded_is_described(tiny_llama: Path):
    model = load_model(str(tiny_llama))
    assert model.architecture == "LlamaForCausalLM"
    assert (model.max_model_len, model.vocab_size, model.eos_token_ids) == (1024, 320, [2])
    assert model.precision == "none" and model.dtype == torch.float32
    assert sorted(model.layers) == [0, 1]
    assert all((s.num_kv_heads, s.key_dim, s.value_dim) == (2, 16, 16) for s in model.layers.values())
    assert not model.module.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_load_and_run(dtype: str, tiny_llama: Path):
    engine = Engine(EngineConfig(model=str(tiny_llama), dtype=dtype, max_model_len=64))
    assert engine.info.dtype == dtype
    result = engine.generate(
        [[5, 6, 7]], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), progress=False
    )
    assert len(result[0].completions[0].token_ids) == 8


@pytest.mark.parametrize(
    ("flags", "dtype", "quantize", "is_told"),
    [
        (["avx2"], "bfloat16", "none", True),
        (["avx2"], "bfloat16", "w8a8", False),
        (["avx2"], "float32", "none", False),
        (["avx512f", "avx512_bf16"], "bfloat16", "none", False),
        (None, "bfloat16", "none", False),  # another kind of chip
    ],
)
def test_a_chip_without_bfloat16_is_told_what_is_faster(
    flags: list[str] | None,
    dtype: str,
    quantize: str,
    is_told: bool,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(loading, "chip_has", lambda wanted: flags is not None and set(wanted) <= set(flags))
    load_model(str(tiny_llama), dtype=dtype, quantize=quantize)
    told = [record.getMessage() for record in caplog.records if "no instructions" in record.getMessage()]
    assert len(told) == is_told
    assert all(str(tiny_llama) in text and "dtype = 'float32' is usually faster" in text for text in told)


def test_the_fingerprint_changes_with_every_decisive_byte(llama_copy: Path):
    def change(name: str, at: int) -> None:
        file = llama_copy / name
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)

    seen = {fingerprint(llama_copy)}
    assert fingerprint(llama_copy) in seen
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        for at in (0, -1):
            change(name, at)
            seen.add(fingerprint(llama_copy))
    (llama_copy / "chat_template.jinja").write_text("{{ messages }}")
    seen.add(fingerprint(llama_copy))
    assert len(seen) == 12
    assert fingerprint(llama_copy, "w8a8") not in seen
    (llama_copy / "README.md").write_text("no part of the answer")
    assert fingerprint(llama_copy) in seen


def test_the_fingerprint_keeps_files_and_settings_apart(tmp_path: Path):
    """Moving bytes from one file, name or setting to the next is a change."""
    variants = [
        {"config.json": b"ab", "tokenizer.json": b"c"},
        {"config.json": b"a", "tokenizer.json": b"bc"},
        {"config.json": b"abtokenizer.jsonc"},
    ]
    digests = set()
    for number, files in enumerate(variants):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        digests.add(fingerprint(folder))
    digests.add(fingerprint(tmp_path / "0", "w8a8", "x"))
    digests.add(fingerprint(tmp_path / "0", "w8a8x"))
    assert len(digests) == 5


def test_precision_is_part_of_the_fingerprint(tiny_llama: Path):
    digests = {load_model(str(tiny_llama), quantize=quantize).fingerprint for quantize in ("none", "w8a8")}
    digests.add(load_model(str(tiny_llama), dtype="bfloat16").fingerprint)
    assert len(digests) == 3


def test_quantizing_swaps_every_linear_but_routers(tmp_path: Path):
    folder = save(
        "qwen2_moe",
        tmp_path,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        decoder_sparse_step=1,
    )
    model = load_model(str(folder), quantize="w8a8")
    left = {name.rpartition(".")[2] for name, m in model.module.named_modules() if isinstance(m, nn.Linear)}
    assert left <= {"gate", "shared_expert_gate"}
    assert model.precision == "w8a8" and model.dtype == torch.float32
    assert any(isinstance(module, QuantizedLinear) for module in model.module.modules())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {}),
        ("opt", {"ffn_dim": 48}),
        ("gemma", {"head_dim": 8}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_model_answers_nearly_as_before(
    kind: str, settings: dict[str, Any], dtype: str, tmp_path: Path
):
    """GPT-2's Conv1D, stored transposed, and tied heads too."""
    folder = save(kind, tmp_path, **settings)
    ids, positions = torch.arange(20)[None] * 3, torch.arange(20)[None]
    logits = []
    for quantize in ("none", "w8a8"):
        model = load_model(str(folder), dtype=dtype, quantize=quantize)
        cache = CpuKVCache(model.layers, 1, 32, model.dtype)
        context = StepContext(cache, cache.prepare([Span([0], 0, 20)]))
        with torch.inference_mode():
            result = model.module(input_ids=ids, position_ids=positions, use_cache=False, penstock=context)
        logits.append(result.logits.float())
    error = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert error < 0.12, error.item()


def test_a_layer_keeps_its_bias_and_its_shape():
    torch.manual_seed(1)

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(4, 8)
            self.fc = nn.Linear(8, 6)
            self.router = nn.Linear(8, 2)
            self.narrow = nn.Linear(8, 1)

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

    model = Tiny()
    x = torch.randn(2, 3, 8)
    before = model.fc(x)
    assert quantize_linears(model, choose_backend("cpu"), "w8a8") == {"w8a8": 1}
    assert isinstance(model.router, nn.Linear) and isinstance(model.narrow, nn.Linear)
    after = model.fc(x)
    assert after.shape == (2, 3, 6)
    assert (after - before).norm() / before.norm() < 0.02


def test_rotary_frequencies_never_depend_on_batch_mates(tmp_path: Path):
    """longrope changes all frequencies once any batch-mate is long: served up to that length only."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 64,
    }
    model = load_model(str(save("phi3", tmp_path, rope_parameters=rope, original_max_position_embeddings=64)))
    assert model.max_model_len == 64


def test_a_pool_too_small_for_one_sequence_is_refused(tiny_llama: Path):
    with pytest.raises(ModelLoadError, match=r"100 tokens.*max_model_len 512"):
        Engine(EngineConfig(model=str(tiny_llama), kv_cache_tokens=100, max_model_len=512))


def test_a_block_size_that_does_not_divide_the_tile_is_refused(tiny_llama: Path):
    with pytest.raises((ModelLoadError, ConfigError), match=r"block_size is 24.*128"):
        Engine(EngineConfig(model=str(tiny_llama), block_size=24))


@needs_c_kernels
def test_int8_kv_that_a_cpu_cannot_serve_is_refused_by_name(tiny_llama, monkeypatch):
    config = EngineConfig(model=str(tiny_llama), kv_cache_dtype="int8", sparse_attention=SparseAttention())
    with pytest.raises(ModelLoadError, match="which on a CPU does not go with sparse_attention"):
        Engine(config)
    monkeypatch.setattr("penstock.kernels.cpu.native.attention.library", lambda: None)
    with pytest.raises(ModelLoadError, match=r"which on a CPU takes the C kernels .* set it to 'none'"):
        Engine(EngineConfig(model=str(tiny_llama), kv_cache_dtype="int8"))
