"""What rounding one group of layers costs the whole model: KL divergence from it with that group alone rounded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .block import quantize_block
from .inputs import Inputs, observe
from .layer import through_installed
from .precision import Precision
from .stream import Ending, Passage, in_float32


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one group of layers in one precision.

    Attributes:
        layers: their names; kl: nats per token; bytes: of the group in a file.
    """

    layers: tuple[str, ...]
    precision: Precision | None
    kl: float
    bytes: int


@torch.no_grad()
def block_costs(
    calibration: Passage,
    selection: Passage,
    index: int,
    calibrating: list[Tensor],
    selecting: list[Tensor],
    candidates: Callable[[int], list[Precision]],
) -> list[Cost]:
    """Of every group of linears in block `index`.

    `calibrating`, `selecting`: what enters it, of the model as it is; `candidates`: precisions to try for so many columns.
    """
    block: Any = calibration.blocks[index]
    parameters = list(block.parameters())
    dtype = parameters[0].dtype
    tried: list[tuple[Inputs, Precision]] = []
    moving: list[list[Tensor]] = []
    with in_float32(parameters):
        observed = observe(
            block,
            lambda number: calibration.step(index, number, calibrating[number]),
            [batch.keep for batch in calibration.batches],
        )
        parent = selection.through(index, selecting)
    for inputs in observed:
        for precision in candidates(inputs.hessian.shape[0]):
            with in_float32(parameters):
                result = quantize_block(
                    block,
                    [replace(inputs)],
                    dict.fromkeys(inputs.names, precision),
                    lambda: calibration.step(index, 0, calibrating[0]) - calibrating[0],
                    dtype,
                    f"{calibration.name}.{index}",
                )
            moving.append(through_installed(selection, index, selecting, result))
            tried.append((inputs, precision))
    for later in range(index + 1, len(selection.blocks)):
        with in_float32(list(selection.blocks[later].parameters())):
            parent = selection.through(later, parent)
            moving = [selection.through(later, stream) for stream in moving]
    kls = divergences(selection, Ending(parent), [Ending(stream) for stream in moving])
    return [
        Cost(
            tuple(f"{calibration.name}.{index}.{name}" for name in inputs.names),
            precision,
            kl,
            sum(precision.bytes_of(*block.get_submodule(name).weight.shape) for name in inputs.names),
        )
        for (inputs, precision), kl in zip(tried, kls, strict=True)
    ]


def divergences(passage: Passage, reference: Ending, candidates: Sequence[Ending]) -> list[float]:
    """KL(reference || candidate) of each, in nats per token, of streams behind the last block."""
    totals, tokens = [0.0] * len(candidates), 0
    for first, *others in passage.logits([reference, *candidates]):
        theirs = first.log_softmax(-1)
        tokens += len(theirs)
        for number, logits in enumerate(others):
            totals[number] += float((theirs.exp() * (theirs - logits.log_softmax(-1))).sum())
    return [total / tokens for total in totals]
