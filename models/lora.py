"""LoRA adapters: low-rank additions to linear layers, several of them in one batch, each for its own rows.

The model itself stays as it is, quantized and shared matrices included: what an adapter adds, scaling * (x A^T) B^T, is
computed in float32 beside it, for the rows of that adapter alone, by products that give a row the same bits in any company.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelLoadError
from .fingerprint import fingerprint
from .quantized_linear import QuantizedLinear, SharedLinearPart
from .steady_linear import steady_linear

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])\.weight")
# Of what PEFT writes, what cannot change an answer, or is looked at by name below.
_READ = {
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
}
_READ |= {"use_rslora"}
_OF_TRAINING = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
# Other ways to start a training change the base model's weights, which an adapter of theirs is then an addition to.
_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
# Zeros behind, up to a multiple of this: sums of fewer terms were not tried to be steady.
_RANKS = 32


@dataclass(frozen=True, slots=True)
class LowRank:
    """What one adapter adds to one layer: `down` [r', K] and `up` [N, r'], float32, with the scaling in `up`.

    r' is the rank with zeros behind, a multiple of 32.
    """

    down: Tensor
    up: Tensor

    def of(self, x: Tensor) -> Tensor:
        """[M, K] -> [M, N]"""
        return steady_linear(steady_linear(x.float(), self.down), self.up)


class Adapters:
    """The adapters of one model, and the rows of the pass under way that belong to each.

    Attributes:
        fingerprints: of each adapter's files, by its name.
    """

    def __init__(self) -> None:
        self.fingerprints: dict[str, str] = {}
        self._rows: dict[str, Tensor] = {}
        self._layers: dict[str, dict[str, LowRank]] = {}
        self._called: dict[str, int] = {}

    def use(self, rows: dict[str, Tensor]) -> None:
        """From now on `rows` [M] int64 of a pass, by adapter, get what that adapter adds; all others nothing."""
        self._rows = rows

    @property
    def in_use(self) -> bool:
        """Whether any row of the pass under way gets something."""
        return bool(self._rows)

    def load(self, model: nn.Module, name: str, folder: str) -> None:
        """Add the adapter in `folder`, in PEFT's format, to `model`, whose linears may be quantized.

        Raises ModelLoadError naming the adapter and what of it cannot be computed.
        """
        path = Path(folder).expanduser()
        parts = _read(name, path, model)
        for layer, low_rank in parts.items():
            if layer not in self._layers:
                self._layers[layer] = {}
                model.get_submodule(layer).register_forward_hook(partial(self._add, layer))
            self._layers[layer][name] = low_rank
        self.fingerprints[name] = fingerprint(path)

    def check_reached(self, compute: Callable[[], object], num_rows: int) -> None:
        """`compute` is a pass of `num_rows` rows over the whole model.

        Raises ModelLoadError for a layer that it does not call, or with other rows.
        """
        self._called.clear()
        compute()
        for layer in self._layers:
            rows = self._called.get(layer)
            if rows != num_rows:
                how = (
                    "reads without calling it" if rows is None else "computes for other rows than the batch's"
                )
                raise ModelLoadError(f"An adapter changes {layer}, which this model {how}; serve it merged.")

    def _add(self, layer: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._called[layer] = output.numel() // output.shape[-1]
        if not self._rows:
            return output
        x, out = args[0].reshape(-1, args[0].shape[-1]), output.reshape(-1, output.shape[-1])
        for name, rows in self._rows.items():
            low_rank = self._layers[layer].get(name)
            if low_rank is not None:
                out[rows] = (out[rows].float() + low_rank.of(x[rows])).to(out.dtype)
        return out.view(output.shape)


def _read(name: str, folder: Path, model: nn.Module) -> dict[str, LowRank]:
    """What the adapter adds, by the layer's path."""
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except Exception as error:  # broken files raise whatever their readers choose
        raise _refused(
            name, f"{folder} needs {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves them: {error}"
        ) from error
    _check_config(name, config)
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise _refused(name, f"it holds {key}, which is no low-rank addition to a linear layer")
        sides.setdefault(match["path"], {})[match["side"]] = tensor
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) else []:
        if not any(f".{path}".endswith(f".{target}") for path in sides):
            raise _refused(name, f"target_modules names {target}, for which its file holds nothing")
    return {path: _low_rank(name, path, pair, config, model) for path, pair in sides.items()}


def _low_rank(name: str, path: str, pair: dict[str, Tensor], config: dict[str, Any], model: Any) -> LowRank:
    if set(pair) != {"A", "B"}:
        raise _refused(name, f"of {path} it holds only lora_{next(iter(pair))}")
    columns, rows, device = _sizes(name, path, model)
    rank = _of_pattern(config.get("rank_pattern"), path, config["r"])
    alpha = _of_pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
    wanted = ((rank, columns), (rows, rank))
    if (pair["A"].shape, pair["B"].shape) != wanted:
        raise _refused(
            name,
            f"of {path} it holds A {list(pair['A'].shape)} and B {list(pair['B'].shape)}; rank {rank} and this model's "
            f"layer need {list(wanted[0])} and {list(wanted[1])}",
        )
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    more = -rank % _RANKS
    down, up = (pair[side].to(device, torch.float32) for side in "AB")
    return LowRank(
        nn.functional.pad(down, (0, 0, 0, more)), nn.functional.pad(scaling * up, (0, more)).contiguous()
    )


def _sizes(name: str, path: str, model: Any) -> tuple[int, int, torch.device]:
    """Of the layer at `path`: numbers that go in and come out, and where it is."""
    from transformers.pytorch_utils import Conv1D

    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if layer is not None and layer is model.get_output_embeddings():
        raise _refused(
            name, f"it changes {path}, the output layer, which is computed for sampled tokens only"
        )
    if "experts" in path.split("."):
        raise _refused(name, f"it changes {path}: experts see other rows than the batch's")
    if isinstance(layer, QuantizedLinear | SharedLinearPart | nn.Linear):
        return layer.in_features, layer.out_features, model.device
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf, model.device
    raise _refused(name, f"it changes {path}, which is no linear layer of {type(model).__name__}")


def _check_config(name: str, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _refused(name, f"its peft_type is {config.get('peft_type')!r}; it must be 'LORA'")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise _refused(name, f"its {key} is {config.get(key)!r}; it must be a number above 0")
    if config.get("bias", "none") != "none":
        raise _refused(name, f"its bias is {config['bias']!r}; only 'none' is computed")
    if config.get("init_lora_weights") not in _INITS:
        raise _refused(
            name,
            f"its init_lora_weights is {config['init_lora_weights']!r}, which is an addition to other weights than the "
            "base model's; convert it with PEFT first",
        )
    for key, value in config.items():
        if value and key not in _READ and key not in _OF_TRAINING:  # use_dora, modules_to_save and the like
            raise _refused(
                name, f"its {key} is {value!r}, which Penstock does not compute; merge it into the model"
            )


def _of_pattern(patterns: dict[str, Any] | None, path: str, default: Any) -> Any:
    """PEFT's own rule: the first pattern that the path, or an end of it after a dot, matches."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


def _refused(name: str, why: str) -> ModelLoadError:
    return ModelLoadError(f"The adapter {name!r} cannot be served: {why}.", param="adapters")
