"""What a model's config.json says of how its weights are stored in few bits, in the words of compressed-tensors.

Knows which schemes our kernels serve, which layer has which, and refuses every other by name: what is served is what the
file says, or nothing. Of tensors it knows nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from ..errors import ModelLoadError
from ..kernels.quantize_weight import GROUPS

METHOD = "compressed-tensors"
# How integers lie in the file: a byte each, or packed. The last is a mix of both, by layer.
FORMATS = ("int-quantized", "naive-quantized", "pack-quantized", "mixed-precision")
# Beside the format's own words in config.json, what a folder says to Penstock alone.
OWN_KEY = "penstock"

Known = TypeVar("Known")
Precision = Literal["w8a8", "w8a16", "w4a16"]


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """`precision` as `dispatch.WEIGHTS` has it; `group`: elements of a row that share a scale, None for all of them;
    `has_zeros`: each group has an integer of its own that stands for zero."""

    precision: Precision
    group: int | None
    has_zeros: bool = False

    @property
    def bits(self) -> int:
        return 4 if self.precision == "w4a16" else 8


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """Which layer is stored in which scheme.

    Attributes:
        schemes: by target: a module's name, "re:" and a pattern that its name begins with, or the name of its class.
        ignore: targets that stay as stored, whatever scheme has them too.
        own: what the folder says to Penstock alone.
    """

    schemes: Mapping[str, StoredScheme]
    ignore: tuple[str, ...]
    own: "OwnKey"

    def scheme_of(self, name: str, classes: tuple[str, ...]) -> StoredScheme | None:
        """Of the module of that name and class, with the classes that it derives from; the most specific target wins."""
        if _matching(self.ignore, name, classes):
            return None
        found = _matching(tuple(self.schemes), name, classes)
        return self.schemes[found] if found else None

    @property
    def precisions(self) -> list[str]:
        return sorted({scheme.precision for scheme in self.schemes.values()})

    @property
    def precision(self) -> str:
        """The one of all schemes, or "mixed"."""
        return self.precisions[0] if len(self.precisions) == 1 else "mixed"


class _Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """How weights or activations are rounded. What only says how that was found out is not looked at, nor whether
    activations are rounded around zero: kernels have a finer way."""

    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    group_size: int | None = None
    strategy: str | None = None
    dynamic: bool | str = False
    actorder: bool | str | None = None
    block_structure: Any = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None
    observer: str | None = None
    observer_kwargs: dict[str, Any] = {}


class _Group(msgspec.Struct, forbid_unknown_fields=True):
    targets: list[str]
    weights: _Arguments | None = None
    input_activations: _Arguments | None = None
    output_activations: _Arguments | None = None
    format: str | None = None


class OwnKey(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What stands under OWN_KEY.

    Attributes:
        output_layer: what an output layer stored in floats is rounded to when it is loaded; None: it is not. It is stored so
            since vLLM loads no quantized one, and transformers none that is tied to the embedding.
        experts: the same for the experts of a mixture, which transformers keeps in other tensors than linears.
        kv_cache_dtype: "int8": keys and values are kept so. The format has no words for a scale for each token and head that
            vLLM takes.
    """

    output_layer: Precision | None = None
    experts: Precision | None = None
    kv_cache_dtype: Literal["int8"] | None = None


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    quant_method: str
    config_groups: dict[str, _Group]
    format: str
    quantization_status: str = "compressed"
    ignore: list[str] | None = None
    kv_cache_scheme: _Arguments | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None
    moe_sparsity_config: dict[str, Any] | None = None
    global_compression_ratio: float | None = None
    version: str | None = None
    run_compressed: bool | None = None


def quantization_config(config: Mapping[str, Any], folder: Path) -> QuantizationConfig | None:
    """Of what `folder`'s config.json holds; None where nothing is stored quantized.

    Raises ModelLoadError naming the folder, what cannot be served, and the remedy.
    """
    stored = config.get("quantization_config")
    if not stored:
        return None
    method = stored.get("quant_method")
    if method != METHOD:
        raise ModelLoadError(
            f"{folder} is stored quantized by {method!r}, of which Penstock reads {METHOD!r} only; "
            "give the original model and quantize = 'w8a8'."
        )
    parsed = _understood(stored, _Config, "quantization_config", folder)
    own = _understood(config.get(OWN_KEY, {}), OwnKey, OWN_KEY, folder)
    if why := _refusal(parsed):
        raise ModelLoadError(
            f"{folder} is stored with {why}, which Penstock does not serve; "
            "quantize the original model anew with `penstock quantize`."
        )
    schemes = {
        target: scheme
        for group in parsed.config_groups.values()
        for target in group.targets
        if (scheme := _scheme(group, folder))
    }
    if not schemes:
        raise ModelLoadError(
            f"{folder / 'config.json'}: quantization_config names no quantized layer; remove it."
        )
    return QuantizationConfig(schemes, tuple(parsed.ignore or ()), own)


def _understood(value: Any, kind: type[Known], key: str, folder: Path) -> Known:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ModelLoadError(
            f"{folder / 'config.json'}: {key} is not understood: {error}. Nothing in it is ignored; quantize the original "
            "model anew with `penstock quantize`, or serve it with a later version of Penstock."
        ) from error


def _refusal(config: _Config) -> str | None:
    """What of it all layers share and we do not serve."""
    for name in (config.format, *(group.format for group in config.config_groups.values())):
        if name is not None and name not in FORMATS:
            return f"the format {name!r}"
    if config.quantization_status != "compressed":
        return f"the quantization status {config.quantization_status!r}"
    for name in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        value = getattr(config, name)
        if value and value.get("format") != "dense":
            return f"a {name}"
    kv = config.kv_cache_scheme
    if kv is not None:
        return f"a kv_cache_scheme ({kv.type}{kv.num_bits}); without it, KV is kept as computed"
    return None


def _scheme(group: _Group, folder: Path) -> StoredScheme | None:
    """Raises ModelLoadError naming what is none of ours."""
    weights, inputs = group.weights, group.input_activations
    if weights is None and inputs is None and group.output_activations is None:
        return None
    why = "no weights" if weights is None else _misfit(weights, inputs)
    if group.output_activations is not None:
        why = "quantized output activations"
    if why or weights is None:
        raise ModelLoadError(
            f"{folder} stores {', '.join(group.targets[:3])} with {why}, which Penstock does not serve; it serves INT8 "
            "weights per channel with activations as they are or in INT8 per token, and INT4 weights in groups of "
            f"{', '.join(map(str, GROUPS))}, those alone with zero points. Quantize the original model anew with "
            "`penstock quantize`."
        )
    if weights.num_bits == 4:
        return StoredScheme("w4a16", weights.group_size, has_zeros=not weights.symmetric)
    return StoredScheme("w8a16" if inputs is None else "w8a8", None)


def _misfit(weights: _Arguments, inputs: _Arguments | None) -> str | None:
    bits = f"{weights.num_bits}-bit weights"
    strategy = weights.strategy or {None: "tensor", -1: "channel"}.get(weights.group_size, "group")
    if weights.type != "int" or weights.num_bits not in (4, 8):
        return f"{weights.type} {bits}"
    if not weights.symmetric and weights.num_bits != 4:
        return f"asymmetric {bits} (zero points)"
    if weights.dynamic:
        return "weights rounded as they come"
    if weights.actorder in ("group", "dynamic", True):
        return "weights in the order of their activations (actorder 'group', g_idx)"
    if inputs is not None:
        if weights.num_bits == 4:
            return f"{bits} and {inputs.num_bits}-bit activations"
        if inputs.type != "int" or inputs.num_bits != 8:
            return f"{inputs.type} {inputs.num_bits}-bit activations"
        if inputs.dynamic is not True:
            return "static activation scales"
        if inputs.strategy != "token":
            return f"activations per {inputs.strategy}"
    if weights.num_bits == 8 and strategy != "channel":
        return f"{bits} per {strategy}"
    if weights.num_bits == 4 and (strategy != "group" or weights.group_size not in GROUPS):
        return f"{bits} per {strategy}{f' of {weights.group_size}' if weights.group_size else ''}"
    return None


def _matching(targets: tuple[str, ...], name: str, classes: tuple[str, ...]) -> str | None:
    """A name before a pattern before a class, as compressed-tensors has it."""
    if name in targets:
        return name
    patterns = sorted(target for target in targets if target.startswith("re:"))
    named = (pattern for pattern in patterns if re.match(pattern.removeprefix("re:"), name))
    of_class = (target for target in targets if target in classes)
    return next(named, None) or next(of_class, None)
