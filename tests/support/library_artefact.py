"""Folders of quantized weights as the compressed-tensors library itself writes them, and the models that it reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def write_as_the_library_does(
    source: Path,
    target: Path,
    groups: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    ignore: Sequence[str] = ("lm_head",),
) -> Path:
    """`groups`: of `QuantizationConfig`, a preset's name and targets or a whole scheme. The largest value of each group (or
    row) becomes the largest integer and a half, as the library's own observers have it; with zero points, the least value
    becomes the least integer."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    config = QuantizationConfig(config_groups=dict(groups), ignore=list(ignore), quantization_status="frozen")
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            parts = module.weight.float().view(*module.weight_scale.shape, -1)
            steps = 2**scheme.weights.num_bits - 1
            if scheme.weights.symmetric:
                scale = parts.abs().amax(dim=-1) / (steps / 2)
            else:
                least, largest = parts.amin(dim=-1).clamp_max(0), parts.amax(dim=-1).clamp_min(0)
                scale = (largest - least) / steps
                zero = (-least / scale).round() - (steps + 1) / 2
                module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(str(target))
    return target


def read_by_the_library(folder: Path, *, own_activations: bool = False) -> Any:
    """A transformers model. Activations are rounded by the library as the folder says, or, with `own_activations`, as
    Penstock does whatever it says: from the least to the largest."""
    groups = json.loads((folder / "config.json").read_bytes())["quantization_config"][
        "config_groups"
    ].values()
    # The way that it has by default fails on zero points, those that it wrote itself, too.
    how = (
        {"quantization_config": CompressedTensorsConfig(dequantize=True)}
        if any(not group["weights"]["symmetric"] for group in groups)
        else {}
    )
    model = AutoModelForCausalLM.from_pretrained(folder, **how)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if own_activations and scheme is not None and scheme.input_activations is not None:
            module.quantization_enabled = False
            module.register_forward_pre_hook(lambda _module, inputs: (_rounded(inputs[0]),))
    return model


def _rounded(x: torch.Tensor) -> torch.Tensor:
    low, high = x.amin(dim=-1, keepdim=True).clamp_max(0), x.amax(dim=-1, keepdim=True).clamp_min(0)
    scale = (high - low) / 255
    zero = -128 - (low / scale).round()
    return ((x / scale + zero).round().clamp(-128, 127) - zero) * scale
