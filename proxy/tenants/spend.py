"""What a request took, and what that costs. What nobody knows is None, never 0."""

from typing import Literal

import msgspec

TOKENS_PER_PRICE = 1_000_000

By = Literal["cache", "routing", "speculation"]


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one model: money per million tokens, or per second of the engine, or both.

    Attributes:
        input, output: None: unknown, unless it goes by the second alone.
        cached_input: of prompt tokens that needed no computing; None: as `input`.
        per_engine_second: of a model of ours; None: it does not go by the second.
    """

    input: float | None = None
    cached_input: float | None = None
    output: float | None = None
    per_engine_second: float | None = None


class Saving(msgspec.Struct, frozen=True):
    """What was not spent, and because of what: money and seconds of the engine; None where nobody knows."""

    by: By
    cost: float | None = None
    seconds: float | None = None


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """What one call of a model took.

    Attributes:
        model: that was called, whatever was asked for.
        prompt_tokens, cached_tokens, completion_tokens: as its usage says; None where it said nothing.
        cost: money.
        engine_seconds: of a model of ours.
        savings: what would have been spent besides.
        reused: answered without a call of its own, by what was kept or is shared: the tokens are the answer's, and count
            against no limit.
    """

    model: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    engine_seconds: float | None = None
    savings: tuple[Saving, ...] = ()
    reused: bool = False

    @property
    def limited_tokens(self) -> int | None:
        """What counts against tokens a minute."""
        if self.reused:
            return 0
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


def cost(
    prices: Prices | None,
    *,
    prompt_tokens: int | None = None,
    cached_tokens: int | None = None,
    completion_tokens: int | None = None,
    engine_seconds: float | None = None,
) -> float | None:
    """Money; None when a price or an amount is unknown that matters: what is 0 makes the other indifferent."""
    if prices is None:
        return None
    parts: list[tuple[float | None, float | None]] = []
    if prices.per_engine_second is not None:
        parts.append((prices.per_engine_second, engine_seconds))
    if prices.per_engine_second is None or (prices.input, prices.output) != (None, None):
        fresh = prompt_tokens
        if prices.cached_input is not None:
            fresh = None if prompt_tokens is None or cached_tokens is None else prompt_tokens - cached_tokens
            parts.append((_per_token(prices.cached_input), cached_tokens))
        parts.append((_per_token(prices.input), fresh))
        parts.append((_per_token(prices.output), completion_tokens))
    total = 0.0
    for price, amount in parts:
        if price == 0 or amount == 0:
            continue
        if price is None or amount is None:
            return None
        total += price * amount
    return total


def _per_token(price: float | None) -> float | None:
    return None if price is None else price / TOKENS_PER_PRICE
