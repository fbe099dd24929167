"""A model as transformers loads it, with nothing of ours in it: what compression reads and changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CompressError, ModelLoadError
from ..models.fingerprint import fingerprint
from ..models.location import resolve_model
from ..models.quiet_loading import quietly, refuse_missing_weights
from ..models.tokenizer import Tokenizer
from .training.interruption import Interruption

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class PlainModel:
    """Attributes:
    module: a transformers causal language model in eval mode.
    path: the folder it was loaded from.
    fingerprint: of all files that decide what it answers.
    """

    module: Any
    tokenizer: Tokenizer
    path: Path
    fingerprint: str


def load_plain(model: str, *, dtype: str = "auto", device: str = "cpu") -> PlainModel:
    """`model` ("builtin", a folder or a hub id) in the dtype it is stored in, or another.

    Raises ModelLoadError naming the model and the reason: no such folder, gated, no causal language model, stored
    quantized, weights missing or no numbers. A Ctrl-C meanwhile is raised when they are read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = resolve_model(model)
    try:
        config = AutoConfig.from_pretrained(path)
        if getattr(config, "quantization_config", None):
            raise ModelLoadError(f"{path} is stored quantized; give the model that it was made from.")
        with quietly(), Interruption() as interruption:
            module, report = AutoModelForCausalLM.from_pretrained(
                path, dtype="auto" if dtype == "auto" else DTYPES[dtype], output_loading_info=True
            )
    except ModelLoadError:
        raise
    except Exception as error:  # broken files raise whatever their readers choose: safetensors, pickle, json
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(f"{path} cannot be loaded as a causal language model: {reason}") from error
    interruption.raise_it()
    refuse_missing_weights(path, module, report)
    for name, weight in module.named_parameters():
        if not bool(weight.isfinite().all()):
            raise ModelLoadError(
                f"{path} has weights that are not numbers (NaN or infinite), {name} for one; download or export it again."
            )
    return PlainModel(module.to(device).eval(), Tokenizer.load(model), path, fingerprint(path))


def blocks(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder layers, and the name they go by in `module` ("model.layers").

    Raises CompressError where the model has no list of as many parts as its config names layers.
    """
    config: Any = module.config
    count = config.get_text_config().num_hidden_layers
    for name, part in module.named_modules():  # outer ones first
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return name, part
    raise CompressError(
        f"{type(module).__name__} does not keep its {count} layers in one list, which compression goes through; "
        "it cannot be compressed here."
    )
