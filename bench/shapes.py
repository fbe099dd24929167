"""Random-weight models of real shapes, made once in a scratch folder. Speed does not depend on what weights say."""

import argparse
from pathlib import Path

SCRATCH = Path(".work/models")


def qwen25_05b(folder: Path = SCRATCH / "qwen2.5-0.5b-random") -> Path:
    """The shape of Qwen2.5-0.5B: 24 layers, hidden 896, 14 query and 2 KV heads, vocabulary 151,936, bf16.

    The built-in model's tokenizer goes along (its ids are a subset), so that the folder can be served over HTTP.
    """
    from transformers import Qwen2Config

    return _make(
        folder,
        Qwen2Config(
            vocab_size=151_936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            dtype="bfloat16",
        ),
    )


def _make(folder: Path, config: object) -> Path:
    if (folder / "config.json").is_file():
        return folder
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    from penstock.models.location import resolve_model

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    builtin = resolve_model("builtin")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(builtin / name, folder)
    return folder


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(qwen25_05b())
