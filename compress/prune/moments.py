"""What the two linear layers that pruning narrows are given, over calibration texts: the second moments of their inputs.

All that importance and its making up for goes by is in them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CompressError
from ..plain_model import blocks
from ..texts import Tokens
from ..training.batches import grouped
from .structure import attention_of, mlp_of

BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Moments:
    """Of one layer: means of x x^T over the tokens.

    Attributes:
        mlp: of what enters down_proj, [channels, channels]; attention: of what enters o_proj.
    """

    mlp: Tensor
    attention: Tensor


@torch.no_grad()
def moments(
    module: Any,
    texts: Sequence[Tokens],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Moments]:
    """Of every layer, in float32. Raises CompressError where activations are no numbers."""
    _, layers = blocks(module)
    found = [
        [
            torch.zeros(linear.in_features, linear.in_features, device=module.device)
            for linear in _narrowed(layer)
        ]
        for layer in layers
    ]
    keep = torch.empty(0)

    def collect(total: Tensor, x: Tensor) -> None:
        rows = x.flatten(0, -2)[keep].float()
        total.addmm_(rows.t(), rows)

    handles = [
        linear.register_forward_pre_hook(lambda _, args, total=total: collect(total, args[0]))
        for layer, totals in zip(layers, found, strict=True)
        for linear, total in zip(_narrowed(layer), totals, strict=True)
    ]
    tokens = sum(len(text.ids) for text in texts)
    done = 0
    try:
        for ids, mask in _batches(texts):
            keep = mask.flatten().to(module.device)
            module.base_model(input_ids=ids.to(module.device), use_cache=False)
            done += int(mask.sum())
            progress(done, tokens)
    finally:
        for handle in handles:
            handle.remove()
    for index, totals in enumerate(found):
        if not all(bool(total.isfinite().all()) for total in totals):
            raise CompressError(
                f"What layer {index} computes on the calibration texts is not all numbers (NaN or infinite); the model's "
                "weights are broken, or its activations overflow."
            )
    return [Moments(*(total / tokens for total in totals)) for totals in found]


def _narrowed(layer: nn.Module) -> tuple[Any, Any]:
    return mlp_of(layer).down_proj, attention_of(layer).o_proj


def _batches(texts: Sequence[Tokens]) -> Iterator[tuple[Tensor, Tensor]]:
    """ids [B, T], padded on the right, and where there are tokens."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    for group in grouped(order, [len(text.ids) for text in texts], BATCH_TOKENS):
        width = max(len(texts[i].ids) for i in group)
        ids = torch.zeros(len(group), width, dtype=torch.int64)
        mask = torch.zeros(len(group), width, dtype=torch.bool)
        for row, i in enumerate(group):
            ids[row, : len(texts[i].ids)] = torch.tensor(texts[i].ids)
            mask[row, : len(texts[i].ids)] = True
        yield ids, mask
