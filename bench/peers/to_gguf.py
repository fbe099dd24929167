"""A model folder as a GGUF file with Q8_0 weights, which llama.cpp loads: FOLDER TARGET.

Knows dense Llama and Qwen2 models with tied embeddings, and the built-in model's byte-level BPE tokenizer of single digits,
which llama.cpp calls "smollm". Runs in llama.cpp's environment: numpy and gguf.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}


def bf16_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 values of each tensor; numpy has no bf16, so the bits are widened here."""
    raw = np.memmap(path, np.uint8, "r")
    header_bytes = int(raw[:8].view(np.uint64)[0])
    for name, about in json.loads(bytes(raw[8 : 8 + header_bytes])).items():
        if name == "__metadata__":
            continue
        if about["dtype"] != "BF16":
            raise ValueError(f"{path}: {name} is {about['dtype']}; only BF16 is converted.")
        begin, end = (8 + header_bytes + offset for offset in about["data_offsets"])
        bits = raw[begin:end].view(np.uint16).astype(np.uint32) << 16
        yield name, bits.view(np.float32).reshape(about["shape"])


def rotated_by_neighbours(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows `[heads * d, in]` in the order of llama's rotary embedding in GGUF: pairs side by side, not half a head apart."""
    rows = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, rows, -1).swapaxes(1, 2).reshape(weight.shape)


def write_config(writer: gguf.GGUFWriter, config: dict) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def write_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    texts = {number: text for text, number in tokenizer["model"]["vocab"].items()} | special
    kinds = [
        gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(len(texts))
    ]
    padding = range(len(texts), vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([texts[number] for number in range(len(texts))] + [f"[PAD{n}]" for n in padding])
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * len(padding))
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    (end,) = (number for number, text in special.items() if text == "<|end|>")
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def convert(folder: Path, target: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    write_config(writer, config)
    write_tokenizer(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in bf16_tensors(folder / "model.safetensors"):
        projection = name.split(".")[-2]
        if config["model_type"] == "llama" and projection in heads:
            tensor = rotated_by_neighbours(tensor, heads[projection])
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor.ndim == 1:
            writer.add_tensor(renamed, tensor)
        else:
            quantized = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(renamed, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
