"""A random two-layer Llama with a byte-level tokenizer and a chat template, written without torch."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    template: str = TEMPLATE,
    special: Sequence[str] = (),
    added: Sequence[str] = (),
    context: int = 512,
) -> Path:
    """Every id reads as something: bytes, then four special tokens, and more of them; then `added` ones, which are tokens
    but not special. The folder is the model's id."""
    folder.mkdir(parents=True)
    size = _write_tokenizer(folder, template, special, added)
    config = CONFIG | {"vocab_size": size, "eos_token_id": 256, "bos_token_id": None}
    config["max_position_embeddings"] = context
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        _weights(size, np.random.default_rng(seed)), folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder


def _write_tokenizer(folder: Path, template: str, special: Sequence[str], added: Sequence[str]) -> int:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({char: place for place, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL, *special])
    tokenizer.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": SPECIAL[0], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    size: int = tokenizer.get_vocab_size()
    return size


def _weights(vocab: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    heads, kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    head = width // heads

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (0.2 * random.standard_normal((rows, columns))).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": matrix(vocab, width),
        "model.norm.weight": np.ones(width, np.float32),
        "lm_head.weight": matrix(vocab, width),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.input_layernorm.weight": np.ones(width, np.float32),
            f"{at}.post_attention_layernorm.weight": np.ones(width, np.float32),
            f"{at}.self_attn.q_proj.weight": matrix(heads * head, width),
            f"{at}.self_attn.k_proj.weight": matrix(kv_heads * head, width),
            f"{at}.self_attn.v_proj.weight": matrix(kv_heads * head, width),
            f"{at}.self_attn.o_proj.weight": matrix(width, heads * head),
            f"{at}.mlp.gate_proj.weight": matrix(inner, width),
            f"{at}.mlp.up_proj.weight": matrix(inner, width),
            f"{at}.mlp.down_proj.weight": matrix(width, inner),
        }
    return weights
