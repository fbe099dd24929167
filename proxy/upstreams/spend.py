"""What an upstream's reply took, for the accounts."""

from ..routing.target import RemoteTarget
from ..tenants.spend import Saving, Spend, cost
from .reading import TokenCounts


def cost_of(target: RemoteTarget, tokens: TokenCounts) -> float | None:
    return cost(
        target.prices,
        prompt_tokens=tokens.prompt,
        cached_tokens=tokens.cached,
        completion_tokens=tokens.completion,
    )


def spend_of(target: RemoteTarget, tokens: TokenCounts | None) -> Spend:
    """`tokens` None: it has not said."""
    tokens = tokens or TokenCounts()
    return Spend(
        model=target.name,
        prompt_tokens=tokens.prompt,
        cached_tokens=tokens.cached,
        completion_tokens=tokens.completion,
        cost=cost_of(target, tokens),
    )


def reused_spend(target: RemoteTarget, tokens: TokenCounts | None, seconds: float | None) -> Spend:
    """Of a reply that was kept, or is shared; `seconds`: that were saved."""
    tokens = tokens or TokenCounts()
    return Spend(
        model=target.name,
        prompt_tokens=tokens.prompt,
        cached_tokens=tokens.cached,
        completion_tokens=tokens.completion,
        cost=0.0,
        savings=(Saving("cache", cost_of(target, tokens), seconds),),
        reused=True,
    )
