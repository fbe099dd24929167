"""How a tenant stands against its limits, and what a request does to that. Pure: values in, values out; no clock, no file.

A request that is admitted takes one from the bucket of requests, an estimate from that of tokens, a place among those that
run, and a reservation from the budget. When it has ended, the estimates give way to the truth.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from .bucket import refilled, wait_for
from .tenant import Limits
from .window import window_end, window_start

# Nothing says when a place will be free.
PLACE_SECONDS = 1.0
NO_WINDOW = -1


class Ask(msgspec.Struct, frozen=True):
    """What a request is expected to take: tokens of prompt and completion, and money."""

    tokens: int = 0
    cost: float = 0.0


class Held(msgspec.Struct, frozen=True, array_like=True):
    """What one process has running: requests, and the money reserved for them."""

    requests: int = 0
    cost: float = 0.0


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """Attributes:
    at: when it was so; seconds since the epoch.
    requests, tokens: what is missing from the buckets.
    window: when the window began of which `spent` is; NO_WINDOW while there was no budget.
    spent: money, settled; what runs is not in it.
    held: by process, while anything of it runs.
    """

    at: float = 0.0
    requests: float = 0.0
    tokens: float = 0.0
    window: int = NO_WINDOW
    spent: float = 0.0
    held: dict[str, Held] = {}

    @property
    def running(self) -> int:
        return sum([held.requests for held in self.held.values()])

    @property
    def reserved(self) -> float:
        return sum([held.cost for held in self.held.values()])


class Refusal(msgspec.Struct, frozen=True):
    """Attributes:
    limit: the one that stands against it.
    wait: seconds after which it would be admitted, as far as that can be told; None for never.
    standing: as it is; nothing was taken.
    """

    limit: Literal["rpm", "tpm", "concurrency", "budget"]
    wait: float | None
    standing: Standing


SpentSince = Callable[[int], float]
"""Money settled since a moment, as the accounts have it."""


def as_of(standing: Standing, limits: Limits, now: float, spent_since: SpentSince) -> Standing:
    """The same after time has passed: buckets refilled, and in the window of now."""
    seconds = max(0.0, now - standing.at)  # a clock that was set back refills nothing
    window, spent = standing.window, standing.spent
    if limits.budget is not None:
        window = window_start(limits.window, now)
        if window != standing.window:
            spent = spent_since(window)
    return Standing(
        now,
        refilled(standing.requests, limits.rpm, seconds),
        refilled(standing.tokens, limits.tpm, seconds),
        window,
        spent,
        standing.held,
    )


def admitted(
    standing: Standing, limits: Limits, ask: Ask, process: str, now: float, spent_since: SpentSince
) -> Standing | Refusal:
    """With the request among what runs, or why not."""
    standing = as_of(standing, limits, now, spent_since)
    refusal = _refusal(standing, limits, ask, now)
    if refusal is not None:
        return refusal
    before = standing.held.get(process, Held())
    return Standing(
        now,
        standing.requests + 1,
        standing.tokens + ask.tokens,
        standing.window,
        standing.spent,
        {**standing.held, process: Held(before.requests + 1, before.cost + ask.cost)},
    )


def settled(
    standing: Standing,
    limits: Limits,
    ask: Ask,
    process: str,
    now: float,
    *,
    tokens: int,
    cost: float,
    places: int = 1,
) -> Standing:
    """With the request ended, and its place free. `tokens` and `cost`: what it took in truth, or the estimates where nobody
    knows.

    The window stays: whatever comes next in another one asks the accounts.
    """
    seconds = max(0.0, now - standing.at)
    missing = refilled(standing.tokens, limits.tpm, seconds) + tokens - ask.tokens
    held = dict(standing.held)
    before = held.pop(process, Held())
    if before.requests > places:
        held[process] = Held(before.requests - places, before.cost - ask.cost)
    return Standing(
        now,
        refilled(standing.requests, limits.rpm, seconds),
        max(0.0, missing),
        standing.window,
        standing.spent + cost,
        held,
    )


def without_dead(standing: Standing, is_alive: Callable[[str], bool]) -> tuple[Standing, Held]:
    """Places of processes that ended come free. What was reserved there counts as spent: nobody knows what it took.

    Returns also what they held.
    """
    dead = [held for process, held in standing.held.items() if not is_alive(process)]
    if not dead:
        return standing, Held()
    lost = Held(sum(held.requests for held in dead), sum(held.cost for held in dead))
    alive = {process: held for process, held in standing.held.items() if is_alive(process)}
    return msgspec.structs.replace(standing, spent=standing.spent + lost.cost, held=alive), lost


def _refusal(standing: Standing, limits: Limits, ask: Ask, now: float) -> Refusal | None:
    """What takes longest to pass is named first."""
    if limits.budget is not None and standing.spent + standing.reserved + ask.cost > limits.budget:
        end = window_end(limits.window, now)
        return Refusal("budget", None if end is None else end - now, standing)
    tokens = wait_for(ask.tokens, standing.tokens, limits.tpm)
    if tokens is None:
        return Refusal("tpm", None, standing)
    requests = wait_for(1, standing.requests, limits.rpm)
    assert requests is not None, "a limit of requests is at least 1"
    if requests or tokens:
        return Refusal("rpm" if requests >= tokens else "tpm", max(requests, tokens), standing)
    if limits.concurrency is not None and standing.running >= limits.concurrency:
        return Refusal("concurrency", PLACE_SECONDS, standing)
    return None
