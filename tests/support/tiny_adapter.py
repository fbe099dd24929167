"""Random LoRA adapters as PEFT saves them, and the same merged into a model's weights by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.1,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def write_adapter(
    folder: Path,
    model: Path,
    *,
    seed: int,
    rank: int = 8,
    alpha: float = 16,
    targets: tuple[str, ...] = TARGETS,
    transposed: bool = False,
    **settings: Any,
) -> Path:
    """Of every layer of `model` whose name ends with one of `targets`. `transposed`: its matrices are [in, out]."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        path = name.removesuffix(".weight")
        if path != name and path.endswith(targets) and weight.ndim == 2:
            rows, columns = reversed(weight.shape) if transposed else weight.shape
            shapes = {"A": (rank, columns), "B": (rows, rank)}
            for side, shape in shapes.items():
                tensors[f"base_model.model.{path}.lora_{side}.weight"] = 0.15 * torch.randn(
                    shape, generator=generator
                )
    config = CONFIG | {"r": rank, "lora_alpha": alpha, "target_modules": list(targets)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def sides(adapter: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the scaling of every layer, by its path; of one rank and one alpha."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
    tensors = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            up = tensors[key.replace("lora_A", "lora_B")]
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[path] = (down, up, scaling)
    return found


def merge(model: Path, adapter: Path, folder: Path, *, transposed: bool = False) -> Path:
    """A copy of `model` whose weights are W + scaling * B A."""
    shutil.copytree(model, folder)
    weights = load_file(model / "model.safetensors")
    for path, (down, up, scaling) in sides(adapter).items():
        added = scaling * up @ down
        weights[f"{path}.weight"] += added.t() if transposed else added
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
