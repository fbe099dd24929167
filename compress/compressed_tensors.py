"""Writes a model of which some linears are quantized in the format of compressed-tensors, which transformers, vLLM and
Penstock load.

Knows names, tensors and the words of config.json; nothing of how integers were found. See docs/quantized-models.md.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from ..models.packed_integers import pack
from ..models.quantization_config import METHOD, OWN_KEY, OwnKey
from ..models.stored_tensors import INDEX, WHOLE
from .companion_files import copy_companions
from .plain_model import PlainModel
from .quantized_tensor import BITS, QuantizedTensor, Scheme

SHARD_BYTES = 5_000_000_000
_INT8_PER_TOKEN = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}


def write_compressed_tensors(
    folder: Path,
    model: PlainModel,
    quantized: Mapping[str, QuantizedTensor],
    *,
    output_layer: Scheme | None = None,
    experts: Scheme | None = None,
    int8_kv: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model` into `folder`, which is there and empty.

    Args:
        quantized: by the names of the `nn.Linear`s of `model.module`; each is asked for once, when it is written. Everything
            else is written as it is in the module, in its own types.
        output_layer: what Penstock should round the output layer to when it loads it, as it does by itself to a model that
            is stored in floats. The layer is written in floats, which is all that vLLM loads, so it is none of `quantized`.
        experts: the same for the experts of a mixture.
        int8_kv: whether Penstock should keep keys and values in INT8.
        shard_bytes: how large a file of weights may grow; a single larger tensor makes a larger one.

    Raises ValueError where a name is no linear of the model, or a matrix has another shape; OSError and safetensors' own
    error where the folder cannot be written.
    """
    linears = {name: part for name, part in model.module.named_modules() if isinstance(part, nn.Linear)}
    if unknown := sorted(set(quantized) - set(linears)):
        raise ValueError(f"{unknown[0]} is no linear layer of {type(model.module).__name__}.")
    if any(linears[name] is model.module.get_output_embeddings() for name in quantized):
        raise ValueError("the output layer is stored in floats; say with output_layer what it is rounded to.")
    groups: dict[str, tuple[QuantizedTensor, list[str]]] = {}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from _floats(model.module, quantized)
        for name in quantized:
            own = quantized[name]
            if own.values.shape != linears[name].weight.shape:
                shapes = f"{list(own.values.shape)}, the layer {list(linears[name].weight.shape)}"
                raise ValueError(f"{name}: the quantized matrix is {shapes}.")
            label = own.scheme if own.group is None else f"{own.scheme}_group_{own.group}"
            label += "" if own.zero is None else "_zero_points"
            groups.setdefault(label, (own, []))[1].append(name)
            yield from _stored(name, own)

    _write_shards(folder, tensors(), shard_bytes)
    schemes = {
        label: _group(own, names if len(groups) > 1 else ["Linear"]) for label, (own, names) in groups.items()
    }
    formats = {scheme["format"] for scheme in schemes.values()}
    described = {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": schemes,
        "ignore": [name for name in linears if name not in quantized],
    }
    model.module.config.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"quantization_config": described}
    own = OwnKey(output_layer, experts, "int8" if int8_kv else None)
    if own != OwnKey():
        config[OWN_KEY] = msgspec.to_builtins(own)
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    copy_companions(model.path, folder)


def _floats(module: Any, quantized: Mapping[str, QuantizedTensor]) -> Iterator[tuple[str, Tensor]]:
    """What is not quantized, under the names that a file has, a tensor with several names under its first."""
    from transformers.core_model_loading import revert_weight_conversion

    seen: set[tuple[int, tuple[int, ...]]] = set()
    floats = {}
    for name, tensor in module.state_dict().items():
        identity = (tensor.data_ptr(), tuple(tensor.shape))
        if name.removesuffix(".weight") in quantized or identity in seen:
            continue
        seen.add(identity)
        floats[name] = tensor
    yield from revert_weight_conversion(module, floats).items()


def _stored(name: str, own: QuantizedTensor) -> Iterator[tuple[str, Tensor]]:
    if own.scheme == "w8a8":
        yield f"{name}.weight", own.values
        yield f"{name}.weight_scale", own.scale
    else:
        yield f"{name}.weight_packed", pack(own.values, BITS[own.scheme])
        yield f"{name}.weight_scale", own.scale.bfloat16()
        yield f"{name}.weight_shape", torch.tensor(own.values.shape)
        if own.zero is not None:
            yield f"{name}.weight_zero_point", pack(own.zero.t(), BITS[own.scheme]).t()


def _group(own: QuantizedTensor, targets: list[str]) -> dict[str, Any]:
    """Of `config_groups`: the scheme of `own`, and which layers have it."""
    weights = {
        "num_bits": BITS[own.scheme],
        "type": "int",
        "symmetric": own.zero is None,
        "strategy": "channel" if own.group is None else "group",
        "group_size": own.group,
        "dynamic": False,
    }
    return {
        "targets": targets,
        "format": "int-quantized" if own.scheme == "w8a8" else "pack-quantized",
        "weights": weights,
        "input_activations": _INT8_PER_TOKEN if own.scheme == "w8a8" else None,
        "output_activations": None,
    }


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int) -> None:
    """One file, or several with an index. No more than one file's tensors are held at a time."""
    shards: list[list[str]] = []
    total = 0

    def write(shard: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        save_file(shard, folder / _unnumbered(len(shards)), metadata={"format": "pt"})
        shards.append(list(shard))

    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        own = tensor.numel() * tensor.element_size()
        if held and size + own > shard_bytes:
            write(held)
            held, size = {}, 0
        held[name] = tensor.detach().cpu().contiguous()
        size, total = size + own, total + own
    write(held)
    if len(shards) == 1:
        (folder / _unnumbered(0)).rename(folder / WHOLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / _unnumbered(number)).rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _unnumbered(number: int) -> str:
    """Of a shard, while it is not known how many there will be."""
    return f"shard-{number}.safetensors"
