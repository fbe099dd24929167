"""Which names there are, what each stands for, and how that is doing now."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import ConfigError, ModelNotFoundError
from ...tables import ANY_MODEL, Route, Upstream
from ..backends import Backends
from .plan import NO_EFFORT, Ask, Candidate, Effort, Plan, plan
from .target import LocalTarget, RemoteTarget, Target

if TYPE_CHECKING:
    from ..cascade.learned_route import LearnedRoute

Health = Callable[[Target], bool]
Cost = Callable[[Target, Ask], float | None]
Efforts = Callable[[Target, Ask], Effort]
Learn = Callable[[str, Route, Target, Target], "LearnedRoute"]


class Router:
    """Resolves names in this order: routes, those of local models, UPSTREAM/MODEL, models of upstreams (of several that
    have it, in the file's order), and last what takes any name.

    Args:
        backends: the local models.
        healthy: whether a target would probably answer now.
        cost: of a request there, None where unknown.
        effort: of an engine of ours for it.
        learn: makes a route with a judge of its name, its settings, and its small and its large tier.

    Raises ConfigError when a route names what is not there.
    """

    def __init__(
        self,
        backends: Backends,
        upstreams: Mapping[str, Upstream],
        routes: Mapping[str, Route],
        *,
        healthy: Health,
        cost: Cost,
        effort: Efforts = lambda _target, _ask: NO_EFFORT,
        learn: Learn | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._backends = backends
        self._upstreams = upstreams
        self._healthy = healthy
        self._cost = cost
        self._effort = effort
        self._draw = draw
        self._models: dict[str, list[Target]] = {}
        for upstream, settings in upstreams.items():
            for model, prices in settings.known_models.items():
                if model != ANY_MODEL:
                    target = RemoteTarget(upstream, prices.name or model, prices)
                    self._models.setdefault(model, []).append(target)
        self._routes = {name: (route, self._targets(name, route)) for name, route in routes.items()}
        self._learned: dict[str, Plan] = {}
        for name, (route, targets) in self._routes.items():
            if route.is_learned:
                assert learn is not None, "there are learned routes, so somebody must make them"
                learned = learn(name, route, *targets)
                self._learned[name] = Plan(tuple(targets), route.policy, learned)

    @property
    def names(self) -> list[str]:
        """What clients can ask for, but for names taken by "*"."""
        return list(dict.fromkeys([*self._routes, *self._backends.names, *self._models]))

    @property
    def learned(self) -> "list[LearnedRoute]":
        return [plan.learned for plan in self._learned.values() if plan.learned is not None]

    def plan(self, name: str, ask: Ask) -> Plan:
        """Raises ModelNotFoundError."""
        found = self._routes.get(name)
        if found is not None:
            route, targets = found
            if route.policy == "cascade" or route.policy == "predictive":
                return self._learned[name]
            weights: Sequence[float] = route.weights or (1.0,) * len(targets)
            candidates = [
                Candidate(
                    target, self._healthy(target), self._cost(target, ask), weight, self._effort(target, ask)
                )
                for target, weight in zip(targets, weights, strict=True)
            ]
            return plan(route.policy, candidates, self._draw())
        targets = self._find(name)
        if not targets:
            raise ModelNotFoundError(
                f"The model {name!r} does not exist here; served are: {', '.join(self.names)}.", param="model"
            )
        if len(targets) == 1:
            return Plan(tuple(targets), "only")
        return plan("fixed", [Candidate(target, self._healthy(target), None) for target in targets], 0.0)

    def _find(self, name: str) -> list[Target]:
        served = self._backends.named(name)
        if served is not None:
            return [LocalTarget(served)]
        upstream, _, model = name.partition("/")
        if upstream in self._upstreams and model:
            named = self._of_upstream(upstream, model)
            if named is not None:
                return [named]
        if name in self._models:
            return self._models[name]
        default = self._backends.default
        if default is not None:
            return [LocalTarget(default.find(name))]
        return [
            RemoteTarget(upstream, name, settings.known_models[ANY_MODEL], any_name=True)
            for upstream, settings in self._upstreams.items()
            if ANY_MODEL in settings.known_models
        ]

    def _of_upstream(self, upstream: str, model: str) -> Target | None:
        models = self._upstreams[upstream].known_models
        found = models.get(model)
        if found is None:
            found = models.get(ANY_MODEL)
            return None if found is None else RemoteTarget(upstream, model, found, any_name=True)
        return RemoteTarget(upstream, found.name or model, found)

    def _targets(self, name: str, route: Route) -> list[Target]:
        targets = []
        for wanted in route.targets:
            found = self._find(wanted)
            if len(found) != 1:
                why = "is nothing that is served" if not found else "stands for several upstreams"
                raise ConfigError(
                    f"routes.{name} names {wanted!r}, which {why}; name a local model, or UPSTREAM/MODEL.",
                    param="routes",
                )
            targets += found
        return targets
