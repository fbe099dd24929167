"""The draw itself, on a CPU: temperature, top-k, top-p, min-p and noise; row by row, from float32 logits.

Sampling is Gumbel-max: argmax of logits / temperature + noise, where the noise of a token is a pure function of
(seed, position, token id). That draws exactly from the softmax, is reproducible, and lets a drafted token be accepted
whenever it equals the token that would have been drawn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..draw import GOLDEN, MIX_1, MIX_2, Draw, noise_key
from .native.library import argmax


def sample(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """logits [S, V] float32, changed in place -> token ids [S] int64, and the score each won by [S], not finite where a row
    has no finite logit."""
    for row, draw in enumerate(draws):
        if not draw.is_greedy:
            _prepare(logits[row], draw)
    best, token_ids = argmax(logits)
    return token_ids, best


def gumbel_noise(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, a pure function of its arguments; token_ids [N] int64 -> [N]."""
    state = token_ids * _signed(GOLDEN) + _signed(noise_key(seed, position))
    state = (state ^ _shift_right(state, 30)) * _signed(MIX_1)
    state = (state ^ _shift_right(state, 27)) * _signed(MIX_2)
    state = state ^ _shift_right(state, 31)
    # 23 random bits, centred in their interval: exact in float32's 24, so strictly inside (0, 1) and both logarithms
    # finite. (With 24 bits the largest rounds to 1: infinite noise, once in 16 million tokens.)
    uniform = (_shift_right(state, 41).float() + 0.5) * 2.0**-23
    return uniform.log_().neg_().log_().neg_()


def _prepare(row: Tensor, draw: Draw) -> None:
    """Temperature, filters and noise, so that the argmax is the draw; [V] in place."""
    row.div_(draw.temperature)
    kept: Tensor | None = None  # token ids that may be drawn, None for all
    if 0 < draw.top_k < row.shape[0]:
        kept = row.topk(draw.top_k).indices
    if draw.top_p < 1.0:
        values, order = (row if kept is None else row[kept]).sort(descending=True, stable=True)
        probabilities = values.softmax(dim=0)
        # A token stays while the mass before it is below p: the smallest set that reaches p, never empty.
        stays = probabilities.cumsum(0) - probabilities < draw.top_p
        stays[0] = True  # also for a p that float32 rounds to 0
        kept = (order if kept is None else kept[order])[stays]
    if draw.min_p > 0.0:
        values = row if kept is None else row[kept]
        stays = values >= values.max() + torch.log(torch.tensor(draw.min_p))
        kept = stays.nonzero().flatten() if kept is None else kept[stays]
    if kept is None:
        row.add_(gumbel_noise(draw.seed, draw.position, torch.arange(row.shape[0])))
        return
    drawn = row[kept] + gumbel_noise(draw.seed, draw.position, kept)
    row.fill_(float("-inf"))
    row[kept] = drawn


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 (torch shifts arithmetically)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
