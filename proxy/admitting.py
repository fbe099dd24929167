"""Where requests meet their tenants' limits: one admission for each, whoever answers it."""

import msgspec
from aiohttp import web

from .context import CONTEXT, Context
from .edge import ADMISSION, caller_of
from .routing.plan import Ask, Plan
from .routing.target import LocalTarget, RemoteTarget, Target
from .tenants.admission import Admission
from .tenants.rights import check_model
from .tenants.spend import Saving, Spend
from .upstreams.reading import TokenCounts
from .upstreams.spend import cost_of


def admitted_to(request: web.Request, model: str, plan: Plan, ask: Ask, n: int) -> Admission:
    """To be closed when the answer has ended, of whichever target of the plan; `model` as it was asked for, `n` choices.

    Raises ModelNotAllowedError, RateLimitError or BudgetExceededError.
    """
    tenant, context = caller_of(request).account, request.app[CONTEXT]
    names = {target.name for target in plan.targets}
    # A route is a model of its own, an alias is what it stands for.
    check_model(tenant, (model, *names) if len(names) == 1 else (model,))
    ask = _within_context(context, plan, ask)
    tokens = ask.prompt_tokens + n * ask.max_tokens
    expected = TokenCounts(ask.prompt_tokens, 0, n * ask.max_tokens)  # as if nothing were cached there
    costs = [price(context, target, expected) for target in plan.targets]
    known = [one for one in costs if one is not None]
    if plan.learned is not None:
        cost = sum(known) if len(known) == len(costs) else None  # both may be asked
    else:
        # Reserved is what the dearest would cost; a price that only a fallback lacks is no reason to refuse.
        cost = None if costs[0] is None else max(known)
    admission = request[ADMISSION] = context.tenants.admit(tenant, model=model, tokens=tokens, cost=cost)
    if len(names) > 1 and plan.learned is None:
        admission.appraise = lambda spend: _with_saving(context, plan, spend)
    return admission


def _with_saving(context: Context, plan: Plan, spend: Spend) -> Spend:
    """Routing saved what the dearest of the route would have cost besides, for the same tokens, as many of them cached. One
    whose price nobody knows may be that: then nobody knows what was saved."""
    prompt, completion = spend.prompt_tokens, spend.completion_tokens
    if spend.reused or spend.cost is None or prompt is None or completion is None:
        return spend
    tokens = TokenCounts(prompt, spend.cached_tokens, completion)
    rivals = [known_price(context, target, tokens) for target in plan.targets if target.name != spend.model]
    known = [one for one in rivals if one is not None]
    dearest = max(known, default=0.0)
    if len(known) < len(rivals):
        saving = Saving("routing")
    elif dearest > spend.cost:
        saving = Saving("routing", dearest - spend.cost)
    else:
        return spend
    return msgspec.structs.replace(spend, savings=(*spend.savings, saving))


def _within_context(context: Context, plan: Plan, ask: Ask) -> Ask:
    """Clients that ask for tens of thousands of tokens by default get no more of the local engine than it has room for."""
    target = plan.targets[0]
    if len(plan.targets) > 1 or not isinstance(target, LocalTarget) or not ask.max_tokens:
        return ask
    backend = context.backends.of(target.served)
    if not backend.is_ready:
        return ask
    return Ask(ask.prompt_tokens, min(ask.max_tokens, backend.engine.info.max_model_len))


def price(context: Context, target: Target, tokens: TokenCounts) -> float | None:
    """What to reserve for a request of so many tokens there; None: unknown. Nothing for a model of ours that has not
    answered yet."""
    known = known_price(context, target, tokens)
    return 0.0 if known is None and isinstance(target, LocalTarget) else known


def known_price(context: Context, target: Target, tokens: TokenCounts) -> float | None:
    """What a request of so many tokens costs there; None where nobody knows."""
    if isinstance(target, RemoteTarget):
        return cost_of(target, tokens)
    # What embeds is a part of the server, and has no price.
    if not tokens.completion:
        return 0.0
    account = context.local_of(target.served).service.account
    return account.known_cost((tokens.prompt or 0) + tokens.completion)
