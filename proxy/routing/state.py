"""The state of things that a plan is made from: who is healthy, and what a request would cost there."""

from ...config import Settings
from ..backend import Backend
from ..upstreams.pool import UpstreamPool
from .plan import Ask
from .router import Router
from .target import LocalTarget, Target

MILLION = 1e6


def router_of(settings: Settings, backend: Backend | None, pool: UpstreamPool) -> Router:
    """Raises ConfigError when a route names what is not there."""

    def healthy(target: Target) -> bool:
        if isinstance(target, LocalTarget):
            return backend is not None and backend.is_ready
        return pool[target.upstream].healthy

    def cost(target: Target, ask: Ask) -> float | None:
        if isinstance(target, LocalTarget):
            # The machine is paid for, whether it computes or not; what is free at the margin is the cheapest.
            return 0.0
        prices = target.prices
        if prices.input is None or prices.output is None:
            return None
        return (prices.input * ask.prompt_tokens + prices.output * ask.max_tokens) / MILLION

    return Router(backend, settings.upstreams, settings.routes, healthy=healthy, cost=cost)
