"""A route with a judge, checked when it is made: its file, its tiers, and whether what the judge needs will be there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...models.embedding_location import choose_embedding_model, embedding_model_name
from ..routing.target import LocalTarget, Target
from .drift import Drift, Drifts

if TYPE_CHECKING:
    from ...config import Settings
    from ...tables import Route
    from ..routing.learned import Judge, Promise


@dataclass(frozen=True, slots=True)
class LearnedRoute:
    """Attributes:
    name: as clients ask for it.
    judge: of answers, or with the policy "predictive" of questions.
    identity: of the router file and what of it counts: what one says of an answer is not what another would.
    drift: what is known of how it does.
    """

    name: str
    settings: "Route"
    small: Target
    large: Target
    judge: "Judge"
    identity: str
    drift: Drift

    @property
    def promise(self) -> "Promise":
        settings = self.settings
        return self.judge.promise(
            predictive=settings.policy == "predictive",
            quality=settings.quality,
            buffer_tokens=settings.buffer_tokens,
        )


def learned_route(
    name: str, route: "Route", small: Target, large: Target, settings: "Settings", drifts: Drifts
) -> LearnedRoute:
    """Raises ConfigError where the route could not work."""
    from ..routing.learned import Judge  # numpy, for those who need it

    assert route.router is not None, "tables.py checks"
    try:
        judge = Judge.load(route.router)
        quality = judge.check(
            small=small.name,
            large=large.name,
            predictive=route.policy == "predictive",
            quality=route.quality,
            buffer_tokens=route.buffer_tokens,
        )
        _check_needs(judge, route, small, settings)
    except ConfigError as error:
        raise ConfigError(f"routes.{name}: {error.message}", param="routes") from error
    identity = f"{judge.fingerprint} {route.policy} {route.quality} {route.buffer_tokens}"
    drift = drifts.of(name, identity, route, quality=quality, workers=settings.workers)
    return LearnedRoute(name, route, small, large, judge, identity, drift)


def _check_needs(judge: "Judge", route: "Route", small: Target, settings: "Settings") -> None:
    if judge.embedding_model is not None:
        chosen = choose_embedding_model(settings.embedding_model)
        served = None if chosen is None else embedding_model_name(chosen)
        if served != judge.embedding_model:
            raise ConfigError(
                f"The router file needs embeddings by {judge.embedding_model}, and this server has "
                f"{served or 'none'}; set embedding_model, or run `penstock tune router` again."
            )
    if isinstance(small, LocalTarget):
        return
    if route.policy == "predictive":
        if route.shadow_share:
            raise ConfigError(
                f"shadow_share cannot look at what {small.name} says, which is passed on as it comes; use a small tier that "
                'is served here, or policy = "cascade".'
            )
        return
    if settings.upstreams[small.upstream].format == "anthropic":
        raise ConfigError(
            f"{small.name} is asked in Anthropic's API, which gives no log-probabilities to judge an answer by; use "
            'policy = "predictive", or a small tier that gives them.'
        )
