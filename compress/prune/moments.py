"""What the two linear layers that pruning narrows are given, over calibration texts: the second moments of their inputs.

All that importance and its making up for goes by is in them. Those of one layer of a large model take a gigabyte, and those
of all of them more than the model: they are computed layer by layer, and wait on the disk.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...errors import CompressError
from ..quantize.stream import Passage, in_float32
from ..texts import Tokens
from .structure import attention_of, mlp_of


@dataclass(frozen=True, slots=True)
class Moments:
    """Of one layer: means of x x^T over the tokens.

    Attributes:
        mlp: of what enters down_proj, [channels, channels]; attention: of what enters o_proj.
    """

    mlp: Tensor
    attention: Tensor


class KeptMoments:
    """Of every layer, float32, in files: computed when one is first asked for, and only one layer's are in memory.

    Args:
        folder: for the files, of which there are all or none.
    """

    def __init__(
        self, folder: Path, module: Any, texts: Sequence[Tokens], progress: Callable[[int, int], None]
    ) -> None:
        self._folder, self._module, self._texts, self._progress = folder, module, texts, progress

    def of(self, index: int) -> Moments:
        """On the device of the model. Raises CompressError where activations are no numbers."""
        if not self._folder.is_dir():
            self._make()
        return Moments(**load_file(self._folder / f"{index}.safetensors", device=str(self._module.device)))

    def _make(self) -> None:
        new = self._folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            moments(
                self._module,
                self._texts,
                lambda index, own: save_file(
                    {"mlp": own.mlp, "attention": own.attention}, new / f"{index}.safetensors"
                ),
                self._progress,
            )
            os.replace(new, self._folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)  # a full disk for one: there is room again
            raise


@torch.no_grad()
def moments(
    module: Any,
    texts: Sequence[Tokens],
    keep: Callable[[int, Moments], None],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Those of each layer, float32, are given to `keep`, and are gone before the next layer's are begun.

    Raises CompressError where activations are no numbers.
    """
    passage = Passage(module, texts)
    hidden, passage.start = passage.start, []
    layers = len(passage.blocks)
    for index in range(layers):
        progress(index, layers)
        keep(index, _of_layer(passage, index, hidden))
    progress(layers, layers)


def _of_layer(passage: Passage, index: int, hidden: list[Tensor]) -> Moments:
    """`hidden`: of each batch what enters the layer, [B, T, H]; afterwards what leaves it."""
    layer, device = passage.blocks[index], hidden[0].device
    linears = mlp_of(layer).down_proj, attention_of(layer).o_proj
    totals = [torch.zeros(linear.in_features, linear.in_features, device=device) for linear in linears]
    keep = torch.empty(0)

    def collect(total: Tensor, x: Tensor) -> None:
        rows = x.flatten(0, -2)[keep]
        total.addmm_(rows.t(), rows)

    handles = [
        linear.register_forward_pre_hook(lambda _, args, total=total: collect(total, args[0]))
        for linear, total in zip(linears, totals, strict=True)
    ]
    try:
        with in_float32(list(layer.parameters())):
            for number, batch in enumerate(passage.batches):
                keep = batch.keep.flatten().to(device)
                hidden[number] = passage.step(index, number, hidden[number])
    finally:
        for handle in handles:
            handle.remove()
    if not all(bool(total.isfinite().all()) for total in totals):
        raise CompressError(
            f"What layer {index} computes on the calibration texts is not all numbers (NaN or infinite); the model's "
            "weights are broken, or its activations overflow."
        )
    return Moments(*(total / passage.tokens for total in totals))
