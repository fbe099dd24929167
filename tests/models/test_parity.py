"""Greedy output is token-identical to transformers' own `generate`, for every architecture listed here.

Each is a tiny random model in float32. The engine serves it under the worst conditions: small random token
budgets, batch-mates, a KV pool so tiny that sequences are preempted, and a second round with prefix hits.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.scheduler import Engine, EngineConfig, SamplingParams

VOCAB_SIZE = 320
NEW_TOKENS = 64
MAX_MODEL_LEN = 160

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Large, so that the largest logit stands out and greedy decoding is no matter of rounding.
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "attention_dropout": 0.0,
}
WINDOW = 24  # smaller than every context
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "mistral": {"sliding_window": WINDOW},
    "ministral": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen2 with window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 48, "decoder_sparse_step": 1},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": MOE
    | {"head_dim": 16, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    "gemma": {"head_dim": 32},
    "gemma2": {
        "tie_word_embeddings": False,  # tied, a random Gemma repeats its last token for ever
        "head_dim": 32,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 32,
    },
    "gemma3_text": {
        "tie_word_embeddings": False,
        "head_dim": 32,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 32,
    },
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "phi3": {"sliding_window": WINDOW},
    "gpt2": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 32},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt_bigcode": {"multi_query": True},
    "olmo": {"clip_qkv": 2.0},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "cohere": {"use_qk_norm": True},
    "cohere2": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "starcoder2": {"sliding_window": WINDOW},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "smollm3": {"no_rope_layers": [1, 0]},
    "exaone4": {
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "seed_oss": {"head_dim": 16},
    "ernie4_5": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "helium": {"head_dim": 16},
    "arcee": {"head_dim": 16},
    "apertus": {},
    "persimmon": {"num_key_value_heads": 4},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 20,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
    },
}

# Their base model is passed by: final hidden states cannot be seen.
WITHOUT_STATES = {"opt"}


def make_model(name: str, folder: Path) -> Any:
    """Save a random model of the architecture; returns it for reference, with eager attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(hash_of(name))
    kind = name.split()[0]
    config = AutoConfig.for_model(kind, **(COMMON | ARCHITECTURES[name]))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    randomize(model)
    model.save_pretrained(folder)
    return model.eval()


def randomize(model: torch.nn.Module) -> None:
    """Make every weight matter, those too that start as zeros or ones (norms, biases, sinks)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "little") % 2**31


def prompts_for(rng: random.Random) -> list[list[int]]:
    """Two share a beginning of several blocks; lengths differ around block boundaries."""
    shared = [rng.randrange(3, VOCAB_SIZE) for _ in range(48)]
    tails = [rng.randrange(1, 40) for _ in range(2)]
    prompts = [shared + [rng.randrange(3, VOCAB_SIZE) for _ in range(tail)] for tail in tails]
    prompts.append([rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 30))])
    return prompts


@torch.inference_mode()
def expected(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Tokens by `generate`, and their log-probabilities."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = out.sequences[0, len(prompt) :].tolist()
    logprobs = torch.log_softmax(torch.cat(out.logits).float(), dim=-1)
    return tokens, logprobs[torch.arange(len(tokens)), tokens]


def serve(
    engine: Engine, prompts: list[list[int]], rng: random.Random
) -> list[tuple[list[int], torch.Tensor]]:
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)
    tokens: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    logprobs: dict[str, list[float]] = {str(number): [] for number in range(len(prompts))}
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    while engine.has_work():
        engine.scheduler.max_num_batched_tokens = rng.choice([4, 5, 7, 16, 33, 64])
        for delta in engine.step():
            assert delta.finish_reason in (None, "length"), delta.error
            tokens[delta.request_id] += delta.token_ids
            logprobs[delta.request_id] += [entry.logprob for entry in delta.logprobs]
        engine.check()
    return [(tokens[key], torch.tensor(logprobs[key])) for key in tokens]


@torch.inference_mode()
def expected_state(model: Any, prompt: list[int]) -> torch.Tensor:
    """Behind the prompt, before the vocabulary."""
    state: torch.Tensor = model.base_model(torch.tensor([prompt])).last_hidden_state[0, -1]
    return state


def states_of(engine: Engine, prompts: list[list[int]]) -> list[torch.Tensor]:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, hidden_state=True)
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    found: dict[str, torch.Tensor] = {}
    while engine.has_work():
        for delta in engine.step():
            assert delta.hidden_state is not None
            found[delta.request_id] = torch.frombuffer(bytearray(delta.hidden_state), dtype=torch.float32)
    assert {state.shape[0] for state in found.values()} == {engine.info.hidden_size}
    return [found[str(number)] for number in range(len(prompts))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_output_equals_generate(name: str, tmp_path: Path):
    reference = make_model(name, tmp_path)
    rng = random.Random(name)
    prompts = prompts_for(rng)
    wanted = [expected(reference, prompt) for prompt in prompts]
    assert max(len(set(tokens)) for tokens, _ in wanted) > 5, (
        "the model only repeats itself: nothing is tested"
    )
    engine = Engine(
        EngineConfig(
            model=str(tmp_path),
            max_model_len=MAX_MODEL_LEN,
            # A single sequence of full length, and three want to run.
            kv_cache_tokens=MAX_MODEL_LEN,
            block_size=16,
            max_num_seqs=4,
            max_num_batched_tokens=64,
        )
    )
    for _ in range(2):
        for got, want in zip(serve(engine, prompts, rng), wanted, strict=True):
            assert got[0] == want[0]
            torch.testing.assert_close(got[1], want[1], atol=1e-3, rtol=0)
    assert engine.stats.preemptions > 0 and engine.stats.prefix_hits > 0
    if name in WITHOUT_STATES:
        assert engine.info.hidden_size == 0
    else:
        for got, prompt in zip(states_of(engine, prompts), prompts, strict=True):
            torch.testing.assert_close(got, expected_state(reference, prompt), atol=1e-3, rtol=1e-3)
    assert engine.stats.kv_blocks_used == 0
