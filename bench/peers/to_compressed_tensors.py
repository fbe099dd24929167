"""A model folder as a W8A8 checkpoint in compressed-tensors' format, which vLLM loads: FOLDER TARGET.

INT8 weights of every linear layer with a scale per output channel; activations are quantized per token as they come.
Embedding and output layer stay as stored, as vLLM's own recipes have it.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _EIGHT_BITS | {"strategy": "channel", "dynamic": False},
            "input_activations": _EIGHT_BITS | {"strategy": "token", "dynamic": True},
        }
    },
}


def quantized(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors for one of the model: itself, or INT8 `[out, in]` and scales `[out, 1]`."""
    if not name.endswith("_proj.weight"):
        return {name: tensor}
    exact = tensor.float()
    scale = exact.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
    integers = (exact / scale).round().clamp(-127, 127).to(torch.int8)
    return {name: integers, f"{name}_scale": scale.to(torch.bfloat16)}


def convert(folder: Path, target: Path) -> None:
    target.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= quantized(name, tensor)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZATION}, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / name, target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
