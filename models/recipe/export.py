"""Writes a training checkpoint as a Hugging Face folder: bf16 safetensors, config and generation config."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM

from .train import llama_config

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def export(checkpoint: Path, tokenizer: Path, folder: Path) -> dict[str, float]:
    """Writes the weights of `checkpoint` and the files of `tokenizer` to `folder`; returns the counters."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.resolve() != folder.resolve():
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, folder / name)
    state = torch.load(checkpoint, weights_only=True)
    config = llama_config(Tokenizer.from_file(str(folder / "tokenizer.json")), state["layers"])
    model = LlamaForCausalLM(config)
    model.load_state_dict(state["model"])
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
        max_new_tokens=160,
    )
    model.save_pretrained(folder, max_shard_size="15800KB")
    return {name: state[name] for name in ("seconds", "step", "tokens")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder with checkpoint.pt")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args = parser.parse_args()
    print(json.dumps(export(args.run / "checkpoint.pt", args.tokenizer, args.out)))


if __name__ == "__main__":
    main()
