"""The decision itself: one pure function from a route, a request and the state of things to an order of targets.

A learned route is walked otherwise (cascade/walk.py): it looks at answers.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from .target import Target

if TYPE_CHECKING:
    from ..cascade.learned_route import LearnedRoute

Policy = Literal["fixed", "weighted", "cheapest"]


class Ask(msgspec.Struct, frozen=True):
    """What is known of a request before it is answered: tokens by estimate."""

    prompt_tokens: int
    max_tokens: int


class Effort(msgspec.Struct, frozen=True):
    """What a request would take of an engine of ours, by what others took: seconds, and money by its hour's price. 0 where
    nothing has shown that yet, and of an upstream."""

    cost: float = 0.0
    seconds: float = 0.0


NO_EFFORT = Effort()


class Candidate(msgspec.Struct, frozen=True):
    """A target and how it is doing.

    Attributes:
        healthy: asked now, it would probably answer.
        cost: what the request would cost there besides what is paid in any case; None: unknown.
        weight: its share, with the policy "weighted".
    """

    target: Target
    healthy: bool
    cost: float | None
    weight: float = 1.0
    effort: Effort = NO_EFFORT


class Plan(msgspec.Struct, frozen=True):
    """Whom to ask, and should that fail before the first token, whom next; `reason`: why the first. `learned`: the route
    whose judge decides instead."""

    targets: tuple[Target, ...]
    reason: str
    learned: "LearnedRoute | None" = None


def plan(policy: Policy, candidates: Sequence[Candidate], draw: float) -> Plan:
    """What is healthy comes first, and what is not last: it may have recovered when all else has failed.

    `draw`: uniform in [0, 1). Unknown costs count as the highest.
    """
    order = _ORDERS[policy](candidates, draw)
    order.sort(key=lambda candidate: not candidate.healthy)  # stable
    first = order[0]
    if not first.healthy:
        reason = "nothing_healthy"
    elif policy == "fixed":
        reason = "first" if first is candidates[0] else "first_healthy"
    else:
        reason = policy
    return Plan(tuple(candidate.target for candidate in order), reason)


def _fixed(candidates: Sequence[Candidate], _draw: float) -> list[Candidate]:
    return list(candidates)


def _weighted(candidates: Sequence[Candidate], draw: float) -> list[Candidate]:
    """One is drawn among the healthy ones, so that the others keep their proportions while one is down."""
    drawable = [candidate for candidate in candidates if candidate.healthy and candidate.weight] or candidates
    place = draw * sum(candidate.weight for candidate in drawable)
    for chosen in drawable:
        place -= chosen.weight
        if place < 0:
            break
    others = sorted((one for one in candidates if one is not chosen), key=lambda one: -one.weight)
    return [chosen, *others]


def _cheapest(candidates: Sequence[Candidate], _draw: float) -> list[Candidate]:
    """Of engines of ours, whose hours are paid for, the one that spends least of them."""

    def price(one: Candidate) -> tuple[float, float, float]:
        return (float("inf") if one.cost is None else one.cost, one.effort.cost, one.effort.seconds)

    return sorted(candidates, key=price)


_ORDERS: dict[Policy, Callable[[Sequence[Candidate], float], list[Candidate]]] = {
    "fixed": _fixed,
    "weighted": _weighted,
    "cheapest": _cheapest,
}
