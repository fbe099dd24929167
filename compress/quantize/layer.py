"""What became of one linear layer, and of a block's: integers and scales, and how well they do."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..quantized_tensor import QuantizedTensor, Scheme
from .precision import AS_STORED
from .rounding import round_activation
from .stream import Passage, in_float32


@dataclass(slots=True)
class LayerRecord:
    """A line of the report. Errors are relative: |wrong - right| / |right|.

    Attributes:
        asked, used: a precision, or AS_STORED; reason: why they differ.
        method: "gptq" or "nearest"; migration: the scales moved into the layer before, if any.
        weight_error: of the matrix; output_error: of what the layer computes on calibration texts; nearest_error: the same
            of rounding to nearest without calibration.
        kl: nats per token of the model with this layer's group alone rounded like this, where that was measured.
    """

    name: str
    asked: str
    used: str = AS_STORED
    reason: str = ""
    method: str = ""
    migration: str = ""
    weight_error: float | None = None
    output_error: float | None = None
    nearest_error: float | None = None
    kl: float | None = None


@dataclass(slots=True)
class BlockResult:
    """Names are those in the block.

    Attributes:
        quantized: by the name of the linear; changed: by the name of the parameter, in the dtype it is stored in.
    """

    quantized: Mapping[str, QuantizedTensor]
    changed: Mapping[str, Tensor]
    records: list[LayerRecord] = field(default_factory=list)


def install(block: nn.Module, result: BlockResult) -> list[RemovableHandle]:
    """Makes `block`, in float32, compute as `result` will be served; until the handles are removed, and its parameters
    replaced."""
    handles = []
    for name, data in result.changed.items():
        block.get_parameter(name).data = data.float()
    for name, tensor in result.quantized.items():
        linear: Any = block.get_submodule(name)
        linear.weight.data = tensor.dequantized()
        if tensor.scheme == "w8a8":
            handles.append(linear.register_forward_pre_hook(_round_input))
    return handles


@torch.no_grad()
def through_installed(
    passage: Passage, index: int, hidden: list[Tensor], result: BlockResult
) -> list[Tensor]:
    """What block `index` makes of what enters it, as `result` will be served."""
    block: Any = passage.blocks[index]
    with in_float32(list(block.parameters())):
        handles = install(block, result)
        try:
            return passage.through(index, hidden)
        finally:
            for handle in handles:
                handle.remove()


def _round_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (round_activation(inputs[0].float()), *inputs[1:])


def save(result: BlockResult, file: Path) -> None:
    """Whole or not at all; see `load`."""
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for name, tensor in result.quantized.items():
        tensors[f"values {name}"], tensors[f"scale {name}"] = tensor.values, tensor.scale
        if tensor.zero is not None:
            tensors[f"zero {name}"] = tensor.zero
        layers[name] = [tensor.scheme, tensor.group]
    tensors |= {f"changed {name}": data for name, data in result.changed.items()}
    described = {"layers": layers, "records": [asdict(record) for record in result.records]}
    part = file.with_suffix(".part")
    save_file(tensors or {"none": torch.zeros(1)}, part, metadata={"result": json.dumps(described)})
    part.replace(file)


class KeptLayers(Mapping[str, QuantizedTensor]):
    """Layers by name, each read from its file when it is asked for: those of a whole model need not fit in memory."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[Path, str]] = {}

    def add(self, name: str, file: Path, kept_as: str) -> None:
        self._places[name] = file, kept_as

    def __getitem__(self, name: str) -> QuantizedTensor:
        file, kept_as = self._places[name]
        with safe_open(file, "pt") as opened:
            return _tensor(opened, kept_as, json.loads(opened.metadata()["result"])["layers"][kept_as])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load(file: Path) -> BlockResult:
    with safe_open(file, "pt") as opened:
        described: Mapping[str, Any] = json.loads(opened.metadata()["result"])
        quantized = {name: _tensor(opened, name, how) for name, how in described["layers"].items()}
        changed = {
            key.removeprefix("changed "): opened.get_tensor(key)
            for key in opened.keys()  # noqa: SIM118  (an open file is no dict)
            if key.startswith("changed ")
        }
    return BlockResult(quantized, changed, [LayerRecord(**record) for record in described["records"]])


def _tensor(opened: Any, name: str, how: tuple[Scheme, int | None]) -> QuantizedTensor:
    scheme, group = how
    values, scale = (opened.get_tensor(f"{part} {name}") for part in ("values", "scale"))
    zero = opened.get_tensor(f"zero {name}") if f"zero {name}" in opened.keys() else None  # noqa: SIM118
    return QuantizedTensor(values, scale, group, scheme, zero)
