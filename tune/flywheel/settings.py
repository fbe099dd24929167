"""The settings with a student in service, and what each measurement is served with. Plain values: reads and writes no file.

Apps change nothing: the route takes the name of the model, which routes are looked up by before models are. The route's own
target is the model all the same, and clients reach it alone by another name. Its cache stays: it goes by the model's name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import Settings
from ...models.location import model_name
from ...proxy.backend import ANY_NAME

Table = Mapping[str, Any]

# Of what is judged, so much is looked at in the background, within so many tokens an hour.
SHADOW_SHARE, SHADOW_BUDGET = 0.02, 50_000
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST = 64
# A measured server is alone, answers everybody, and keeps nothing: what a cache answers costs the same before and after.
_MEASURED = {"cache": False, "tenants": False, "workers": 1, "access_log": "off"}
_NOT_MEASURED = ("host", "port", "api_keys", "admin_host", "admin_port", "admin_key", "otel_endpoint")


@dataclass(frozen=True, slots=True)
class Names:
    """Attributes:
    asked: the model's, which apps ask for.
    large: under which it is reached alone from now on.
    small: the student's.
    """

    asked: str
    large: str
    small: str

    @classmethod
    def of(cls, settings: Settings) -> "Names":
        asked = settings.served_model_name or model_name(settings.model)
        stem = _NO_NAME.sub("-", asked)[: _LONGEST - len("-student")]
        return cls(asked, f"{asked}-large", f"{stem}-student")


@dataclass(frozen=True, slots=True)
class InService:
    """What of the student is switched on.

    Attributes:
        route: policy, router file and quality; None: the student answers nobody.
        drafts: the student guesses for its teacher.
    """

    student: Path
    quantize: str
    route: "Routed | None"
    drafts: bool


@dataclass(frozen=True, slots=True)
class Routed:
    policy: str
    router: Path
    quality: float
    shadowed: bool


def changes(service: InService, names: Names, settings: Settings) -> dict[str, Any]:
    """What is to be laid over the present settings."""
    changed: dict[str, Any] = {}
    if service.drafts:
        changed |= {"draft_model": str(service.student), "draft_quantize": service.quantize}
    if service.route is None:
        return changed
    route: dict[str, Any] = {
        "policy": service.route.policy,
        "targets": [names.small, names.asked],
        "router": str(service.route.router),
        "quality": service.route.quality,
    }
    if service.route.shadowed:
        route |= {"shadow_share": SHADOW_SHARE, "shadow_budget": SHADOW_BUDGET}
    tier = student_of(service.student, service.quantize, settings)
    others = [
        alias
        for alias, target in settings.model_aliases.items()
        if target == names.asked and alias not in (ANY_NAME, names.large)
    ]
    return changed | {
        "model_aliases": {names.large: names.asked},
        "tiers": {names.small: tier},
        "routes": {name: dict(route) for name in (names.asked, *others)},
    }


def student_of(student: Path, quantize: str, settings: Settings) -> dict[str, Any]:
    """Its own settings; where it runs is where its teacher does."""
    own: dict[str, Any] = {"model": str(student), "quantize": quantize, "device": settings.device}
    return own if settings.threads is None else {**own, "threads": settings.threads}


def laid_over(present: Table, changed: Table) -> dict[str, Any]:
    """Tables of the same name become one; what both name in them, a route for one, is as in `changed`."""
    tables = {
        name: {**present.get(name, {}), **value}
        for name, value in changed.items()
        if isinstance(value, Mapping)
    }
    return {**present, **changed, **tables}


def measured(present: Table, changed: Table | None = None) -> dict[str, Any]:
    """Of a server that is measured with the present settings, and what is laid over them."""
    kept = {name: value for name, value in present.items() if name not in _NOT_MEASURED}
    return laid_over(laid_over(kept, changed or {}), _MEASURED)


def alone(present: Table) -> dict[str, Any]:
    """The same of the main model without routes to others."""
    others = ("routes", "tiers", "upstreams")
    return {name: value for name, value in measured(present).items() if name not in others}
