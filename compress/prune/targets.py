"""From what is asked for to a size: shares and counts rounded to what can be cut, or the combination that costs least.

Knows no model: what a size costs in accuracy is measured by whoever calls.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...errors import CompressError
from .price import Price
from .structure import Size

# Kernels take channels so many at a time; a number in between would be padded to the next of these.
CHANNEL_MULTIPLE = 32
# A search takes away an eighth of the channels, or of the groups, at a time.
SEARCH_STEPS = 8

# KL divergence from the whole model, of each size.
Measure = Callable[[Sequence[Size]], Sequence[float]]


def asked_size(whole: Size, *, mlp: float | None, kv_groups: float | None, layers: int | None) -> Size:
    """`mlp` and `kv_groups` are the shares that go, `layers` how many. Raises CompressError naming what is possible."""
    size = whole
    if mlp is not None:
        least = channel_floor(whole)
        channels = whole.channels
        if 0 < mlp < 1:
            channels = max(least, _round(whole.channels * (1 - mlp), CHANNEL_MULTIPLE))
        if channels >= whole.channels:
            raise CompressError(
                f"mlp is {mlp:g}; the share of the {whole.channels} channels that goes can be from "
                f"{_share(CHANNEL_MULTIPLE, whole.channels)} to {_share(whole.channels - least, whole.channels)}, "
                f"{CHANNEL_MULTIPLE} channels at a time.",
                param="mlp",
            )
        size = replace(size, channels=channels)
    if kv_groups is not None:
        groups = whole.groups
        if 0 < kv_groups < 1:
            groups = max(1, round(whole.groups * (1 - kv_groups)))
        if whole.groups == 1:
            raise CompressError(
                "kv_groups: the model has a single key-value head, which must stay.", param="kv_groups"
            )
        if groups >= whole.groups:
            raise CompressError(
                f"kv_groups is {kv_groups:g}; the share of the {whole.groups} groups that goes can be from "
                f"{_share(1, whole.groups)} to {_share(whole.groups - 1, whole.groups)}.",
                param="kv_groups",
            )
        size = replace(size, groups=groups)
    if layers is not None:
        if not 1 <= layers < whole.layers:
            raise CompressError(
                f"layers is {layers}; the model has {whole.layers}, of which 1 to {whole.layers - 1} can go.",
                param="layers",
            )
        size = replace(size, layers=whole.layers - layers)
    return size


def check_size(whole: Size, price: Price, share: float) -> None:
    """`price` in parameters. Raises CompressError naming what is possible."""
    least = math.ceil(100 * _least_share(whole, price)) / 100
    if not least <= share < 1:
        raise CompressError(
            f"size is {share:g}; the share of this model's parameters that stays can be from {least:g} to below 1.",
            param="size",
        )


def check_speed_up(whole: Size, price: Price, times: float) -> None:
    """`price` in time. Raises CompressError naming what is possible."""
    most = math.floor(100 / max(_least_share(whole, price), 1e-9)) / 100
    if not 1 < times <= most:
        raise CompressError(
            f"speed_up is {times:g}; by what was measured here, a model cut out of this one can be at most {most:g} times "
            "as fast at batch 1.",
            param="speed_up",
        )


def cheapest_loss(whole: Size, price: Price, share: float, measure: Measure) -> Size:
    """Of the sizes that it comes by of at most `share` of the whole's price, the one of the least KL.

    At every step goes what costs the least KL for what it saves. A size that meets the target gets as many channels back as
    the price allows.
    """
    limit = share * price.of(whole)
    size, lost = whole, 0.0
    met: list[tuple[float, Size]] = []
    while price.of(size) > limit:
        smaller = [_widened(whole, other, price, limit) for other in _next_sizes(whole, size)]
        steps = list(zip(measure(smaller), smaller, strict=True))
        met += [(loss, other) for loss, other in steps if price.of(other) <= limit]
        here, before = price.of(size), lost
        lost, size = min(steps, key=lambda step: (step[0] - before) / max(here - price.of(step[1]), 1e-30))
    return min(met, key=lambda step: step[0])[1]


def channel_floor(whole: Size) -> int:
    return min(CHANNEL_MULTIPLE, whole.channels)


def _next_sizes(whole: Size, size: Size) -> list[Size]:
    channels = max(CHANNEL_MULTIPLE, _round(whole.channels / SEARCH_STEPS, CHANNEL_MULTIPLE))
    groups = max(1, whole.groups // SEARCH_STEPS)
    least = channel_floor(whole)
    found = []
    if size.channels > least:
        found.append(replace(size, channels=max(least, size.channels - channels)))
    if size.groups > 1:
        found.append(replace(size, groups=max(1, size.groups - groups)))
    if size.layers > 1:
        found.append(replace(size, layers=size.layers - 1))
    return found


def _widened(whole: Size, size: Size, price: Price, limit: float) -> Size:
    while size.channels < whole.channels:
        wider = replace(size, channels=min(whole.channels, size.channels + CHANNEL_MULTIPLE))
        if price.of(wider) > limit:
            break
        size = wider
    return size


def _least_share(whole: Size, price: Price) -> float:
    """Of the whole's price: what the smallest model that can be cut out of it costs."""
    return price.of(Size(1, channel_floor(whole), 1)) / price.of(whole)


def _round(value: float, multiple: int) -> int:
    return round(value / multiple) * multiple


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3g}"
