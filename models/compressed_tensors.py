"""Reads linears that are stored as integers and scales, in the format of compressed-tensors, without rounding them anew.

transformers builds the model and fills it, as it does any other; before it does, each linear that the model's config names
is replaced by one that has the parameters which the file has. What becomes of them is `quantized_linear`'s.

Every tensor's type and shape is checked against the files' headers first: one that is missing or does not fit is an error
that names it, and so is one that nothing takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelLoadError
from .packed_integers import unpack
from .quantization_config import QuantizationConfig, StoredScheme
from .stored_tensors import StoredTensor, stored_tensors

# The name of our extension among transformers' quantizers.
NAME = "penstock"
# The ends of names of tensors that belong to a quantized weight, and are nothing by themselves.
BELONGING = (
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "k_scale",
    "v_scale",
)
INTEGERS = ("I8", "I32")
SCALES = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class Part:
    """One of a stored linear's tensors: what type it is kept in, and what the file must have."""

    dtype: torch.dtype
    stored_as: tuple[str, ...]
    shape: tuple[int, ...]


class StoredLinear(nn.Module):
    """A linear's integers and scales as they lie in the file; it multiplies nothing.

    Attributes:
        weight or weight_packed: [N, K] int8, or [N, K * bits / 32] int32.
        weight_scale: [N, K / group] float32, [N, 1] without groups.
        weight_zero_point: [N * bits / 32, K / group] int32, of schemes that have them.
        bias: [N], or None.
    """

    def __init__(self, scheme: StoredScheme, out_features: int, in_features: int, is_packed: bool) -> None:
        super().__init__()
        self.scheme = scheme
        self.out_features, self.in_features = out_features, in_features
        self.is_packed = is_packed
        for name, part in self.parts().items():
            empty = torch.empty(part.shape, dtype=part.dtype, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    def parts(self) -> dict[str, Part]:
        """By the name of the parameter."""
        rows, columns, group = self.out_features, self.in_features, self.scheme.group
        scale = Part(torch.float32, SCALES, (rows, columns // group if group else 1))
        if not self.is_packed:
            return {"weight": Part(torch.int8, ("I8",), (rows, columns)), "weight_scale": scale}
        parts = {
            "weight_packed": Part(torch.int32, ("I32",), (rows, self._words(columns))),
            "weight_scale": scale,
            "weight_shape": Part(torch.int64, ("I64", "I32"), (2,)),
        }
        if self.scheme.has_zeros:
            parts["weight_zero_point"] = Part(torch.int32, ("I32",), (self._words(rows), scale.shape[1]))
        return parts

    def integers(self) -> tuple[Tensor, ...]:
        """[N, K] int8 and [N, K / group] float32, [N, 1] without groups; where there are zero points, as many int8."""
        stored: Any = self
        scale: Tensor = stored.weight_scale.detach()
        if not self.is_packed:
            return stored.weight.detach(), scale
        values = unpack(stored.weight_packed.detach(), self.scheme.bits, self.in_features)
        if not self.scheme.has_zeros:
            return values, scale
        # Packed along the rows, so that those of several matrices can be put one below the other.
        zeros = unpack(stored.weight_zero_point.detach().t(), self.scheme.bits, self.out_features)
        return values, scale, zeros.t().contiguous()

    def _words(self, elements: int) -> int:
        """Of 32 bits."""
        return -(-elements * self.scheme.bits // 32)


def stored_linears(module: nn.Module) -> dict[str, StoredLinear]:
    return {name: part for name, part in module.named_modules() if isinstance(part, StoredLinear)}


def replace_linears(model: nn.Module, config: QuantizationConfig, folder: Path) -> None:
    """Give `model`, which has no weights yet, a `StoredLinear` wherever `config` has a scheme.

    Raises ModelLoadError naming the file and the tensor that does not fit, or the layer that is not ours to read.
    """
    tensors = stored_tensors(folder)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    taken: set[str] = set()
    for name, module in list(model.named_modules()):
        # A pattern may match what is around linears, too.
        if not isinstance(module, nn.Linear):
            continue
        scheme = config.scheme_of(name, tuple(kind.__name__ for kind in type(module).__mro__))
        if scheme is None:
            continue
        short = name.removeprefix(prefix)
        stored_as = short if _has(tensors, short) else name
        linear = StoredLinear(
            scheme, module.out_features, module.in_features, f"{stored_as}.weight_packed" in tensors
        )
        _check(linear, stored_as, tensors, folder)
        taken |= {f"{stored_as}.{part}" for part in linear.parts()}
        if module.bias is not None:
            linear.register_parameter("bias", module.bias)
        else:
            linear.bias = None
        model.set_submodule(name, linear)
    _refuse_left_over(set(tensors) - taken, tensors)


def _has(tensors: Mapping[str, StoredTensor], name: str) -> bool:
    return f"{name}.weight" in tensors or f"{name}.weight_packed" in tensors


def _check(linear: StoredLinear, name: str, tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    scheme = linear.scheme
    if scheme.group and linear.in_features % scheme.group:
        raise ModelLoadError(
            f"{folder} stores {name} in groups of {scheme.group}, of which its {linear.in_features} inputs are no whole "
            "number; quantize the original model anew with `penstock quantize`."
        )
    for suffix, part in linear.parts().items():
        own = f"{name}.{suffix}"
        stored = tensors.get(own)
        if stored is None:
            file = next(
                (tensor.file for other, tensor in tensors.items() if other.startswith(f"{name}.")), folder
            )
            raise ModelLoadError(
                f"{file} lacks {own}, which {scheme.precision} layers have; download or export the model again."
            )
        if stored.dtype not in part.stored_as or stored.shape != part.shape:
            wanted = f"{list(part.shape)} {' or '.join(part.stored_as)}"
            raise ModelLoadError(
                f"{stored.file}: {own} is {stored}; for this model it must be {wanted}. "
                "Download or export the model again."
            )


def _refuse_left_over(names: set[str], tensors: Mapping[str, StoredTensor]) -> None:
    """Of tensors that say that something is quantized which would be served as if it were not."""
    for name in sorted(names):
        if name.rpartition(".")[2] in BELONGING or tensors[name].dtype in INTEGERS:
            what = (
                "experts stored quantized are not served yet" if ".experts." in name else "no layer takes it"
            )
            raise ModelLoadError(
                f"{tensors[name].file} holds {name}, {tensors[name]}: {what}. Quantize the original model anew with "
                "`penstock quantize`."
            )


def check_values(module: nn.Module, folder: Path) -> None:
    """What headers do not show. Raises ModelLoadError naming the layer."""
    for name, linear in stored_linears(module).items():
        stored: Any = linear
        if not bool(torch.isfinite(stored.weight_scale).all()):
            raise ModelLoadError(
                f"{folder}: {name}.weight_scale is not finite everywhere; download or export the model again."
            )
        if linear.is_packed and stored.weight_shape.tolist() != [linear.out_features, linear.in_features]:
            raise ModelLoadError(
                f"{folder}: {name}.weight_shape is {stored.weight_shape.tolist()}; for this model it must be "
                f"{[linear.out_features, linear.in_features]}. Download or export the model again."
            )


@cache
def register() -> None:
    """Make transformers call `replace_linears` for a model whose config has `extension`."""
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(NAME)
    class Extension(QuantizationConfigMixin):  # type: ignore[misc]
        def __init__(self, quant_method: str, stored: Any, folder: Path) -> None:
            super().__init__(quant_method)
            self.stored, self.folder = stored, folder

    @register_quantizer(NAME)
    class Reader(HfQuantizer):  # type: ignore[misc]
        is_trainable = False

        def is_serializable(self) -> bool:
            return False

        def _process_model_before_weight_loading(self, model: Any, **kwargs: object) -> None:
            own = self.quantization_config
            replace_linears(model, own.stored, own.folder)

        def _process_model_after_weight_loading(self, model: Any, **kwargs: object) -> None:
            self.remove_quantization_config(model)


def extension(stored: QuantizationConfig, folder: Path) -> dict[str, Any]:
    """What a transformers config has to say for `folder` to be read here."""
    register()
    return {"quant_method": NAME, "stored": stored, "folder": folder}
