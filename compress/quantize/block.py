"""Quantizes the linear layers of one block, or the head: moves scales where that helps, rounds, says how well it went."""

from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from ...errors import CompressError
from ..quantized_tensor import QuantizedTensor
from .drift import Streams
from .gptq import gptq, made_up
from .inputs import Inputs, linears, weights_of
from .layer import BlockResult, LayerRecord
from .migration import migrate, site_of
from .precision import Precision
from .rounding import Grid, dequantized, grid_of, round_activation, round_to_nearest


def quantize_block(
    block: nn.Module,
    observed: list[Inputs],
    precisions: Mapping[str, Precision | None],
    added: Callable[[], Tensor],
    dtype: torch.dtype,
    where: str,
    streams: Streams | None = None,
) -> BlockResult:
    """`block`, in float32, which may be changed.

    Args:
        observed: what its linears are given.
        precisions: of the linears by name; None, or no entry, leaves one as it is.
        added: what the block adds to its input, the same input each time.
        dtype: what its other parameters are stored in.
        where: its name, for the report.
        streams: what enters it, where the blocks before it are rounded and it is to make up for that; None: they are not.

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
    done: dict[str, Tensor] = {}
    for inputs, precision in rounds:
        if precision is None:
            continue
        if streams is not None and precision.makes_up:
            inputs = streams.drifted(inputs, done)
        rounded = _round_group(weights_of(block, inputs.names), inputs, precision)
        for name, (tensor, record) in zip(inputs.names, rounded, strict=True):
            record.name, record.migration = name, moved.get(name, "")
            layers[name] = tensor
            records.append(record)
            if streams is not None:
                done[name] = tensor.dequantized()
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
    grid = grid_of(weight, precision)
    nearest = round_to_nearest(weight, grid), grid
    target = weight if inputs.drift is None else made_up(weight, inputs.hessian, inputs.drift)
    calibrated = gptq(target, inputs.hessian, precision) or nearest
    sample = round_activation(inputs.sample) if precision.rounds_activations else inputs.sample
    right = inputs.sample if inputs.right_sample is None else inputs.right_sample
    found = []
    for own, near, best in zip(weights, _split(nearest, sizes), _split(calibrated, sizes), strict=True):
        wanted = right @ own.t()
        errors = [_relative(sample @ dequantized(*pair).t(), wanted) for pair in (near, best)]
        is_calibrated = errors[1] < errors[0]
        tensor = _as_integers(*(best if is_calibrated else near), precision)
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


def _as_integers(multiples: Tensor, grid: Grid, precision: Precision) -> QuantizedTensor:
    """The lowest multiple of each group is the lowest integer."""
    zeros = -precision.most - 1 - grid.lowest
    values = (multiples.view(*grid.scales.shape, -1) + zeros[..., None]).view_as(multiples)
    return QuantizedTensor(
        values.to(torch.int8),
        grid.scales.contiguous(),
        precision.group,
        precision.scheme,
        zeros.to(torch.int8) if precision.has_zeros else None,
    )


def _split(pair: tuple[Tensor, Grid], sizes: list[int]) -> list[tuple[Tensor, Grid]]:
    multiples, grid = pair
    ends = list(accumulate(sizes))
    rows = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return [(multiples[own], grid.of(own)) for own in rows]


def _relative(wrong: Tensor, right: Tensor) -> float:
    return float((wrong - right).norm() / right.norm().clamp_min(1e-30))


def _common(inputs: Inputs, precisions: Mapping[str, Precision | None]) -> Precision | None:
    (precision,) = {precisions.get(name) for name in inputs.names}
    return precision


def _may_change(block: nn.Module, writer: str, precisions: Mapping[str, Precision | None]) -> bool:
    return precisions.get(writer) is not None or writer not in linears(block)
