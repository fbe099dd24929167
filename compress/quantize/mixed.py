"""Picks a precision for every group of layers: as few bytes as a budget of KL divergence buys. Knows numbers only."""

from collections.abc import Mapping, Sequence

from .precision import Precision
from .sensitivity import Cost

Group = tuple[str, ...]
# What a byte counts for in a layer that multiplies in floats. One that multiplies in integers reads as many bytes in 8 bits,
# and is faster wherever it is not bound by reading.
IN_FLOATS = 1.1


def choose(
    costs: Sequence[Cost], stored: Mapping[Group, int], budget: float
) -> dict[Group, Precision | None]:
    """The precision of each group, None as stored, such that their costs add up to `budget` at most.

    Greedy: of all steps to fewer bytes, the one that costs the least KL for each byte it saves, until none is left that the
    budget allows.

    Args:
        costs: what was measured; stored: bytes of each group as it is, at no cost.
    """
    options = {group: [Cost(group, None, 0.0, size)] for group, size in stored.items()}
    for cost in costs:
        options[cost.layers].append(cost)
    chosen = {group: offered[0] for group, offered in options.items()}
    left = budget
    while True:
        steps = [
            (max(0.0, cost.kl - chosen[group].kl) / saved, cost)
            for group, offered in options.items()
            for cost in offered
            if (saved := _price(chosen[group]) - _price(cost)) > 0 and cost.kl - chosen[group].kl <= left
        ]
        if not steps:
            return {group: cost.precision for group, cost in chosen.items()}
        _, best = min(steps, key=lambda step: step[0])
        left -= best.kl - chosen[best.layers].kl
        chosen[best.layers] = best


def _price(cost: Cost) -> float:
    in_integers = cost.precision is not None and cost.precision.rounds_activations
    return cost.bytes if in_integers else IN_FLOATS * cost.bytes
