"""Who asks, and whether they may now: what the server's edge and its pipelines call."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ...errors import AuthenticationError
from ..controls import tenant_of
from .admission import Admission
from .api_key import ApiKey, is_one_of, presented_key
from .counters import ACCOUNTS, STANDINGS, Counters
from .directory import KEYS, TENANTS, Directory
from .environment import open_environments
from .refusals import error_of
from .rights import unpriced
from .standing import Ask, Refusal
from .tenant import Tenant, with_full_rights
from .totals import HOURLY, Totals


class TenantStore:
    """The folder that all processes share; opened once in each.

    Raises ConfigError when it cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        table, counts = open_environments(path, (KEYS, TENANTS), (STANDINGS, ACCOUNTS, HOURLY))
        self.directory = Directory(table, clock)
        self.counters = Counters(counts, clock)
        self.totals = Totals(counts, self.counters.written)
        self.clock = clock

    def close(self) -> None:
        self.counters.close()
        self.directory.close()


class Tenants:
    """Args:
    store: None where nothing is counted and only static keys are known.
    api_keys: static keys, each a tenant with full rights.
    """

    def __init__(self, store: TenantStore | None = None, *, api_keys: tuple[str, ...] = ()) -> None:
        self._store = store
        self._api_keys = api_keys

    @property
    def is_open(self) -> bool:
        """Everybody is let in: there are no keys."""
        return not self._api_keys and (self._store is None or self._store.directory.find(None).is_empty)

    @property
    def totals(self) -> Totals | None:
        """None where nothing is counted."""
        return None if self._store is None else self._store.totals

    def authenticate(self, headers: Mapping[str, str]) -> Tenant:
        """Whose key a request brings. Without any key here the server is open: to "default", or whatever key is brought.

        Raises AuthenticationError.
        """
        key = presented_key(headers)
        if self._api_keys and is_one_of(key, self._api_keys):
            return with_full_rights(tenant_of(key))
        found = None if self._store is None else self._store.directory.find(ApiKey.parse(key))
        if found is not None and found.tenant is not None:
            return found.tenant
        if not self._api_keys and (found is None or found.is_empty):
            return with_full_rights(tenant_of(key))
        wrong = "This server needs an API key"
        if found is not None and found.ended:
            wrong = "The API key has ended: it was revoked, or another took its place"
        elif key:
            wrong = "The API key is not one of this server's"
        raise AuthenticationError(f"{wrong}; send 'Authorization: Bearer KEY' (or 'x-api-key: KEY').")

    def take_keys(self, api_keys: tuple[str, ...]) -> None:
        """Static ones, from now on; requests that run have been let in."""
        self._api_keys = api_keys

    def admit(self, tenant: Tenant, *, model: str, tokens: int, cost: float | None = None) -> Admission:
        """Lets a request run, if it may now.

        Args:
            model: for messages.
            tokens: that prompt and completion will take, as far as can be told.
            cost: the same in money; None where that is not known.

        Raises RateLimitError or BudgetExceededError, and ModelNotAllowedError where there is a budget and no price.
        """
        if cost is None and tenant.limits.budget is not None:
            raise unpriced(tenant, model)
        ask = Ask(tokens, cost or 0.0)
        if self._store is None:
            return Admission(tenant, ask, None, None)
        decided = self._store.counters.admit(tenant, ask)
        if isinstance(decided, Refusal):
            raise error_of(decided, tenant, ask, self._store.clock())
        return Admission(tenant, ask, self._store.counters, decided)
