"""What a request took, and what that costs. What nobody knows is None, never 0."""

from typing import Literal

import msgspec

TOKENS_PER_PRICE = 1_000_000

By = Literal["cache", "routing", "speculation"]


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one model. Money per million tokens, or per second of the engine; None where nothing is charged by that.

    `cached_input`: of prompt tokens that needed no computing; None charges them as the others.
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
        from_cache: answered without a model: the tokens are the answer's, and count against no limit.
    """

    model: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    engine_seconds: float | None = None
    savings: tuple[Saving, ...] = ()
    from_cache: bool = False

    @property
    def limited_tokens(self) -> int | None:
        """What counts against tokens a minute."""
        if self.from_cache:
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
    """Money; None when there is no price, or something is unknown that has one."""
    if prices is None or prices == Prices():
        return None
    fresh = prompt_tokens
    if prices.cached_input is not None:
        if prompt_tokens is None or cached_tokens is None:
            return None
        fresh = prompt_tokens - cached_tokens
    total = 0.0
    for price, amount, per in (
        (prices.input, fresh, TOKENS_PER_PRICE),
        (prices.cached_input, cached_tokens, TOKENS_PER_PRICE),
        (prices.output, completion_tokens, TOKENS_PER_PRICE),
        (prices.per_engine_second, engine_seconds, 1),
    ):
        if price is None:
            continue
        if amount is None:
            return None
        total += price * amount / per
    return total
