"""What a linear is given once the layers before it are rounded, beside what the model as it is gives it.

Rounding each matrix well for what it is given leaves the errors of all before it where they are. Knowing both, another is
rounded in its place: what makes of the inputs that there will be, as nearly as can be, what it made of the right ones.
After Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration" (2025).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import SAMPLE, Inputs
from .stream import Passage


class _Seen(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Streams:
    """Calibration texts in front of block `index`, of each batch [B, T, H]: in the model as it is, and with all blocks
    before it rounded."""

    passage: Passage
    index: int
    straight: list[Tensor]
    rounded: list[Tensor]

    @torch.no_grad()
    def drifted(self, inputs: Inputs, done: Mapping[str, Tensor]) -> Inputs:
        """`inputs` as they are with the weights `done`, by name, in this block too; with what they are off by.

        As they were where a layer gets some of the tokens only, like an expert: not the same ones, perhaps.
        """
        block: Any = self.passage.blocks[self.index]
        reader = block.get_submodule(inputs.names[0])
        width = inputs.hessian.shape[0]
        hessian, drift = torch.zeros(width, width), torch.zeros(width, width)
        stride = -(-self.passage.tokens // SAMPLE)
        samples: list[tuple[Tensor, Tensor]] = []
        for number, batch in enumerate(self.passage.batches):
            right = self._given(reader, number, self.straight)
            with _in_place(block, done):
                own = self._given(reader, number, self.rounded)
            if right is None or own is None or not len(right) == len(own) == batch.keep.numel():
                return inputs
            there = batch.keep.flatten()
            right, own = right[there], own[there]
            hessian.addmm_(own.t(), own)
            drift.addmm_((right - own).t(), own)
            samples.append((right[::stride].clone(), own[::stride].clone()))
        right_sample, sample = (torch.cat(rows) for rows in zip(*samples, strict=True))
        return replace(inputs, hessian=hessian, sample=sample, right_sample=right_sample, drift=drift)

    def _given(self, reader: nn.Module, number: int, hidden: list[Tensor]) -> Tensor | None:
        """Rows [n, K] that `reader` is given of a batch; None where it is not called."""
        rows: list[Tensor] = []

        def see(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows.append(args[0].reshape(-1, args[0].shape[-1]).float())
            raise _Seen

        handle = reader.register_forward_pre_hook(see)
        try:
            self.passage.step(self.index, number, hidden[number])
        except _Seen:
            return rows[0]
        finally:
            handle.remove()
        return None


@contextmanager
def _in_place(block: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    linears = {name: block.get_submodule(name) for name in weights}
    before = {name: linear.weight.data for name, linear in linears.items()}
    try:
        for name, linear in linears.items():
            linear.weight.data = weights[name]
        yield
    finally:
        for name, linear in linears.items():
            linear.weight.data = before[name]
