"""The state of things that a plan is made from: who is healthy, and what a request would cost there."""

from collections.abc import Mapping

from ...config import Settings
from ...tables import Route
from ..backends import Backends
from ..cascade.drift import Drifts
from ..cascade.learned_route import LearnedRoute, learned_route
from ..local_account import LocalAccount
from ..upstreams.pool import UpstreamPool
from .plan import NO_EFFORT, Ask, Effort
from .router import Router
from .target import LocalTarget, Target

MILLION = 1e6


def router_of(
    settings: Settings,
    backends: Backends,
    pool: UpstreamPool,
    accounts: Mapping[str, LocalAccount],
    drifts: Drifts,
) -> Router:
    """`accounts`: of the local models, by their names. `drifts`: what is known of learned routes so far.

    Raises ConfigError when a route names what is not there."""

    def healthy(target: Target) -> bool:
        if isinstance(target, LocalTarget):
            return backends.of(target.served).is_ready
        return pool[target.upstream].healthy

    def cost(target: Target, ask: Ask) -> float | None:
        if isinstance(target, LocalTarget):
            # The machine is paid for, whether it computes or not; what is free at the margin is the cheapest.
            return 0.0
        prices = target.prices
        if prices.input is None or prices.output is None:
            return None
        return (prices.input * ask.prompt_tokens + prices.output * ask.max_tokens) / MILLION

    def effort(target: Target, ask: Ask) -> Effort:
        if not isinstance(target, LocalTarget):
            return NO_EFFORT
        account, tokens = accounts[backends.of(target.served).name], ask.prompt_tokens + ask.max_tokens
        return Effort(account.expected_cost(tokens), account.expected_seconds(tokens))

    def learn(name: str, route: Route, small: Target, large: Target) -> LearnedRoute:
        return learned_route(name, route, small, large, settings, drifts)

    return Router(
        backends, settings.upstreams, settings.routes, healthy=healthy, cost=cost, effort=effort, learn=learn
    )
