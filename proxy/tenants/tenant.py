"""A tenant: its name, what it may use, and how much of it. Counts nothing."""

import math
import re
from typing import Literal, TypeAlias

import msgspec

from ...cache.near import Mode
from ...errors import InvalidRequestError
from ...scheduler.urgency import HIGHEST, LOWEST

Window: TypeAlias = Literal["day", "month", "total"]

# A name is part of keys of the cache and of the accounts, and is typed in shells.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# What tenants of static keys are called, by a digest of the key (controls.tenant_of).
_DIGEST = re.compile(r"[0-9a-f]{32}")


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a tenant may use; None leaves it open.

    Attributes:
        rpm: requests a minute. A bucket of one minute's worth that refills all the time.
        tpm: tokens a minute, prompts and completions; likewise.
        concurrency: most requests at once.
        budget: most money in a window, in the currency of the prices.
        window: day or month (as UTC has them), or total: it never ends.

    Raises InvalidRequestError naming the limit and its value.
    """

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget: float | None = None
    window: Window = "month"

    def __post_init__(self) -> None:
        for name in ("rpm", "tpm", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequestError(
                    f"{name} is {value}; it must be at least 1. To let a tenant ask for nothing, revoke its keys; "
                    "to leave it open, name no limit.",
                    param=name,
                )
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise InvalidRequestError(
                f"budget is {self.budget:g}; it must be an amount above 0. To let a tenant spend nothing, revoke its keys; "
                "to leave it open, name no budget.",
                param="budget",
            )


_NONE = Limits()


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attributes:
        name: of its entries in the cache, its share of the engine, and its accounts.
        models: names it may use, as /v1/models lists them; None for all.
        cache: the most that is made for it of questions that mean the same; None for what the server makes.
        prompts: whether its whole prompts are kept beside answers, where the server keeps any (`cache_prompts`).
        priority: the best (lowest) it may ask for; a request may ask for less.
        weight: its share of the engine, where several tenants want more than there is.

    Raises InvalidRequestError naming the field and its value.
    """

    name: str
    limits: Limits = Limits()
    models: tuple[str, ...] | None = None
    cache: Mode | None = None
    prompts: bool = True
    priority: int = 0
    weight: float = 1.0

    @property
    def is_limited(self) -> bool:
        """There is something that it may not."""
        return self.models is not None or self.limits != _NONE

    def __post_init__(self) -> None:
        if self.models is not None and not (self.models and all(self.models)):
            raise InvalidRequestError(
                "models holds no name, or an empty one; name what the tenant may use, or leave models out for all.",
                param="models",
            )
        if not HIGHEST <= self.priority <= LOWEST:
            raise InvalidRequestError(
                f"priority is {self.priority}; it must be between {HIGHEST} (first) and {LOWEST} (last).",
                param="priority",
            )
        if not 0 < self.weight < math.inf:
            raise InvalidRequestError(
                f"weight is {self.weight:g}; it must be a number above 0: a share beside others' of 1.",
                param="weight",
            )


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Of a tenant to be made. Raises InvalidRequestError."""
    if not is_name(name):
        raise InvalidRequestError(
            f"The tenant's name is {name!r}; it must be 1 to 64 letters, digits, '_', '-' or '.', and begin with a letter "
            "or digit.",
            param="name",
        )
    if name == "default" or _DIGEST.fullmatch(name):
        raise InvalidRequestError(
            f"The tenant's name is {name!r}, which stands for who comes without a key, or with one of `api_keys`; "
            "choose another.",
            param="name",
        )


def with_full_rights(name: str) -> Tenant:
    """The tenant of a static key, or of an open server: everything the server has is for it."""
    return Tenant(name=name, priority=HIGHEST)
