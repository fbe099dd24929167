"""A refusal as the error its caller sees: the value, the limit, and what to do."""

from datetime import UTC, datetime

from ...errors import BudgetExceededError, PenstockError, RateLimitError
from .rate_headers import rate_headers
from .standing import Ask, Refusal
from .tenant import Tenant
from .window import window_end

_EVERY = {"day": "this day's", "month": "this month's", "total": "the whole"}


def error_of(refusal: Refusal, tenant: Tenant, ask: Ask, now: float) -> PenstockError:
    limits, standing = tenant.limits, refusal.standing
    if refusal.limit == "budget":
        assert limits.budget is not None
        end = window_end(limits.window, now)
        until = (
            "it does not end by itself"
            if end is None
            else f"the next begins {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC"
        )
        return BudgetExceededError(
            f"Tenant {tenant.name} has spent {standing.spent:.6g} of {_EVERY[limits.window]} budget of {limits.budget:g}, "
            f"{standing.reserved:.6g} is reserved for what runs, and this request may cost {ask.cost:.6g}; {until}. "
            "Ask for less, wait, or have the budget raised.",
            retry_after=refusal.wait,
        )
    headers = rate_headers(limits, standing)
    if refusal.limit == "concurrency":
        return RateLimitError(
            f"Tenant {tenant.name} has {standing.running} requests running; its limit is {limits.concurrency} at once "
            "(concurrency). Wait for one to end.",
            retry_after=refusal.wait,
            headers=headers,
        )
    if refusal.wait is None:
        return RateLimitError(
            f"The request may take {ask.tokens} tokens; tenant {tenant.name} has {limits.tpm} a minute (tpm), so that it "
            "will never be admitted. Lower max_tokens, shorten the prompt, or have the limit raised.",
            headers=headers,
        )
    value = (
        f"{limits.rpm} requests a minute (rpm), and all of them are taken"
        if refusal.limit == "rpm"
        else f"{limits.tpm} tokens a minute (tpm), {standing.tokens:.0f} of which are taken, and this request may take "
        f"{ask.tokens}"
    )
    return RateLimitError(
        f"Tenant {tenant.name} has {value}. Try again in {refusal.wait:.3g} s.",
        retry_after=refusal.wait,
        headers=headers,
    )
