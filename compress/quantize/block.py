"""Quantizes the linear layers of one block, or the head: moves scales where that helps, rounds, says how well it went."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...errors import CompressError
from ..quantized_tensor import QuantizedTensor
from .gptq import gptq
from .inputs import Inputs, linears, weights_of
from .layer import BlockResult, LayerRecord
from .migration import migrate, site_of
from .precision import Precision
from .rounding import dequantized, round_activation, round_to_nearest, scales_of


def quantize_block(
    block: nn.Module,
    observed: list[Inputs],
    precisions: Mapping[str, Precision | None],
    added: Callable[[], Tensor],
    dtype: torch.dtype,
    where: str,
) -> BlockResult:
    """`block`, in float32, which may be changed.

    Args:
        observed: what its linears are given.
        precisions: of the linears by name; None, or no entry, leaves one as it is.
        added: what the block adds to its input, the same input each time.
        dtype: what its other parameters are stored in.
        where: its name, for the report.

    Raises CompressError where activations are not numbers.
    """
    layers: dict[str, QuantizedTensor] = {}
    changed: dict[str, Tensor] = {}
    records: list[LayerRecord] = []
    moved: dict[str, str] = {}
    # Scale moves out of norms and biases; out of a matrix only where it is rounded anyway.
    before = {
        name: parameter.data.clone() for name, parameter in block.named_parameters() if parameter.dim() == 1
    }
    rounds = [(inputs, _common(inputs, precisions)) for inputs in observed]
    for inputs, precision in rounds:
        if not bool(inputs.hessian.isfinite().all()):
            raise CompressError(
                f"What enters {where}.{inputs.names[0]} is not all numbers (NaN or infinite) on the calibration texts; "
                "the model's weights are broken, or its activations overflow."
            )
        if precision is None:
            continue
        site = site_of(block, inputs, added)
        # A linear that stays as stored would have to be written anew, rounded to its own dtype.
        if site is not None and _may_change(block, site.writer, precisions):
            migration = migrate(block, site, inputs, precision, dtype)
            if migration is not None:
                moved |= dict.fromkeys(inputs.names, str(migration))
    for inputs, precision in rounds:
        if precision is None:
            continue
        rounded = _round_group(weights_of(block, inputs.names), inputs, precision)
        for name, (tensor, record) in zip(inputs.names, rounded, strict=True):
            record.name, record.migration = name, moved.get(name, "")
            layers[name] = tensor
            records.append(record)
    for name, data in before.items():
        own = block.get_parameter(name).data
        if not torch.equal(own, data):
            changed[name] = own.to(dtype)
    return BlockResult(layers, changed, records)


def _round_group(
    weights: list[Tensor], inputs: Inputs, precision: Precision
) -> list[tuple[QuantizedTensor, LayerRecord]]:
    """Matrices that read the same rows, as one: rows of a matrix are rounded each for itself."""
    weight = torch.cat(weights)
    sizes = [len(own) for own in weights]
    scales = scales_of(weight, precision)
    nearest = round_to_nearest(weight, scales, precision), scales
    calibrated = gptq(weight, inputs.hessian, precision) or nearest
    sample = round_activation(inputs.sample) if precision.rounds_activations else inputs.sample
    found = []
    for own, near, best in zip(weights, _split(nearest, sizes), _split(calibrated, sizes), strict=True):
        wanted = inputs.sample @ own.t()
        errors = [_relative(sample @ dequantized(*pair).t(), wanted) for pair in (near, best)]
        is_calibrated = errors[1] < errors[0]
        values, scale = best if is_calibrated else near
        tensor = QuantizedTensor(
            values.to(torch.int8).contiguous(), scale.contiguous(), precision.group, precision.scheme
        )
        record = LayerRecord(
            "",
            str(precision),
            str(precision),
            method="gptq" if is_calibrated else "nearest",
            weight_error=_relative(tensor.dequantized(), own),
            output_error=min(errors),
            nearest_error=errors[0],
        )
        found.append((tensor, record))
    return found


def _split(pair: tuple[Tensor, Tensor], sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(pair[0], sizes), torch.split(pair[1], sizes), strict=True))


def _relative(wrong: Tensor, right: Tensor) -> float:
    return float((wrong - right).norm() / right.norm().clamp_min(1e-30))


def _common(inputs: Inputs, precisions: Mapping[str, Precision | None]) -> Precision | None:
    (precision,) = {precisions.get(name) for name in inputs.names}
    return precision


def _may_change(block: nn.Module, writer: str, precisions: Mapping[str, Precision | None]) -> bool:
    return precisions.get(writer) is not None or writer not in linears(block)
