"""Random two-layer mixtures of experts in Hugging Face format, float32: six experts, of which a token takes three."""

from pathlib import Path
from typing import Any

import torch

COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "num_experts_per_tok": 3,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Widths are multiples of 8, which transformers needs for its own products of experts.
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 6, "intermediate_size": 56},
    "qwen3_moe": {
        "num_experts": 6,
        "moe_intermediate_size": 40,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    "qwen2_moe": {
        "num_experts": 6,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 33,
        "decoder_sparse_step": 1,
    },
    "olmoe": {"num_experts": 6},
    "granitemoe": {"num_local_experts": 6},
    # Transposed, with biases, gate and up interleaved and clamped.
    "gpt_oss": {
        "num_local_experts": 6,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def save_mixture(kind: str, folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(COMMON | KINDS[kind]))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "experts" in name:  # biases that start as zeros matter too
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder
