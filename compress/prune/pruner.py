"""Cuts one model to sizes: which channels, groups and layers go, by calibration texts; and what that costs at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluate import PlainScorer, compare_all
from ..plain_model import blocks
from ..texts import Tokens
from .cut import Kept, cut, group_columns
from .importance import best_groups, channels_by_importance, fit
from .job import LayerRecord, Progress
from .moments import KeptMoments
from .structure import Size, Structure, attention_of, mlp_of


class Pruner:
    """Args:
    module: in float32, where that fits.
    calibration: what importance goes by; selection: what sizes and layers are compared by.
    folder: for what is known of the calibration texts; see `KeptMoments`.
    """

    def __init__(
        self,
        module: Any,
        structure: Structure,
        calibration: Sequence[Tokens],
        selection: Sequence[Tokens],
        folder: Path,
        progress: Progress,
    ) -> None:
        self._module, self._structure = module, structure
        self._selection = selection
        self._progress = progress
        self._moments = KeptMoments(
            folder, module, calibration, lambda done, of: progress("calibrate", done, of)
        )
        # Of each layer once asked for, most important first.
        self._channels: dict[int, torch.Tensor] = {}
        # In the order they go, with the KL of all so far.
        self._left_out: list[tuple[int, float]] = []

    def cut_to(self, size: Size) -> tuple[Any, list[LayerRecord]]:
        """A model of that size, which shares with its parent the weights that stay whole, and what went of every layer."""
        gone = self._layers_out(self._structure.size.layers - size.layers)
        kept, records = [], []
        for index, layer in enumerate(blocks(self._module)[1]):
            if index in gone:
                records.append(LayerRecord(index, True, 0, 0, [], 1.0, 1.0, gone[index]))
                continue
            own, losses = self._keep(index, layer, size)
            kept.append((index, own))
            groups_out = sorted(set(range(self._structure.size.groups)) - set(own.groups.tolist()))
            records.append(LayerRecord(index, False, len(own.channels), len(own.groups), groups_out, *losses))
        return cut(self._module, self._structure, kept), records

    def kl(self, sizes: Sequence[Size]) -> list[float]:
        """From the whole model, of each size, on the selection texts, nats per token."""
        return self._kl([self.cut_to(size)[0] for size in sizes])

    def _keep(self, index: int, layer: Any, size: Size) -> tuple[Kept, tuple[float, float]]:
        whole, device = self._structure.size, self._module.device
        kept = Kept(torch.arange(whole.channels, device=device), torch.arange(whole.groups, device=device))
        mlp_loss = attention_loss = 0.0
        if (size.channels, size.groups) == (whole.channels, whole.groups):
            return kept, (mlp_loss, attention_loss)
        known = self._moments.of(index)
        if size.channels < whole.channels:
            weight = mlp_of(layer).down_proj.weight.data
            if index not in self._channels:
                self._channels[index] = channels_by_importance(known.mlp, weight)
            kept.channels = self._channels[index][: size.channels].sort().values
            kept.down, mlp_loss = fit(known.mlp, weight, kept.channels)
        if size.groups < whole.groups:
            weight = attention_of(layer).o_proj.weight.data
            kept.groups = best_groups(known.attention, weight, size.groups, self._structure)
            kept.o, attention_loss = fit(known.attention, weight, group_columns(kept.groups, self._structure))
        return kept, (mlp_loss, attention_loss)

    def _layers_out(self, count: int) -> dict[int, float]:
        """The layers whose leaving out, one after another, moves the model least; and its KL then."""
        whole = self._structure.size
        everything = Kept(torch.arange(whole.channels), torch.arange(whole.groups))
        while len(self._left_out) < count:
            gone = {index for index, _ in self._left_out}
            tried = [index for index in range(whole.layers) if index not in gone]
            losses = self._kl(
                [
                    cut(self._module, self._structure, [(i, everything) for i in tried if i != index])
                    for index in tried
                ]
            )
            self._left_out.append(min(zip(tried, losses, strict=True), key=lambda pair: pair[1]))
        return dict(self._left_out[:count])

    def _kl(self, candidates: Sequence[Any]) -> list[float]:
        scorers = [PlainScorer(module, f"cut {number}") for number, module in enumerate(candidates)]
        found = compare_all(
            scorers,
            PlainScorer(self._module, "the parent"),
            self._selection,
            progress=lambda done, of: self._progress("try cuts", done, of),
        )
        return [comparison.kl.value for comparison in found]
