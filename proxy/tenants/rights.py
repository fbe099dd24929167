"""What a tenant may ask for at all, whatever it has left of its limits."""

from collections.abc import Iterable

import msgspec

from ...cache.near import MODES, Mode
from ...errors import InvalidRequestError, ModelNotAllowedError
from ...scheduler.urgency import Urgency
from .tenant import Tenant


def may_use(tenant: Tenant, names: Iterable[str]) -> bool:
    """`names`: of one thing, any of which will do."""
    return tenant.models is None or any(name in tenant.models for name in names)


def check_model(tenant: Tenant, names: tuple[str, ...]) -> None:
    """`names`: the one that was asked for first. Raises ModelNotAllowedError."""
    if not may_use(tenant, names):
        raise ModelNotAllowedError(
            f"Tenant {tenant.name} may not use the model {names[0]!r}; it may use: {', '.join(tenant.models or ())}.",
            param="model",
        )


def unpriced(tenant: Tenant, model: str) -> ModelNotAllowedError:
    """A budget that cannot be kept is no budget."""
    return ModelNotAllowedError(
        f"Tenant {tenant.name} has a budget, but what the model {model!r} costs is not known here. Set its prices, or "
        "take the budget away.",
        param="model",
    )


def permitted_urgency(tenant: Tenant, asked: Urgency) -> Urgency:
    """As asked, and never better than the tenant's. Who asks for nothing (0) gets what there is.

    Raises InvalidRequestError for a priority that is asked for and better.
    """
    if asked.priority >= tenant.priority:
        return asked
    if asked.priority != 0:
        raise InvalidRequestError(
            f"priority is {asked.priority}; the best for tenant {tenant.name} is {tenant.priority}. Ask for that, or for "
            "less (a higher number).",
            param="priority",
        )
    return msgspec.structs.replace(asked, priority=tenant.priority)


def permitted_mode(tenant: Tenant, mode: Mode) -> Mode:
    """The least of both."""
    return mode if tenant.cache is None else min(mode, tenant.cache, key=MODES.index)
