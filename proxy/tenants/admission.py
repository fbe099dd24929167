"""One request of a tenant, from when it may run to when it has ended.

with tenants.admit(tenant, model=name, tokens=expected, cost=estimate) as admission:
    ...
    admission.settle(Spend(model=name, prompt_tokens=12, completion_tokens=34, cost=0.0001))
"""

import logging
from types import TracebackType
from typing import TYPE_CHECKING

from .environment import StoreError
from .rate_headers import rate_headers
from .spend import Spend
from .standing import Ask, Standing
from .tenant import Tenant

if TYPE_CHECKING:
    from .counters import Counters

log = logging.getLogger(__name__)


class Admission:
    """Open until `close`, which frees its place and writes what it took. Of one event loop."""

    def __init__(
        self, tenant: Tenant, model: str, ask: Ask, counters: "Counters | None", standing: Standing | None
    ) -> None:
        self._tenant, self._model, self._ask = tenant, model, ask
        self._counters, self._standing = counters, standing
        self._spends: list[Spend] = []
        self._cancelled = False

    @property
    def headers(self) -> dict[str, str]:
        """What was left of the limits when it was admitted, as `x-ratelimit-*`."""
        return {} if self._standing is None else rate_headers(self._tenant.limits, self._standing)

    def settle(self, spend: Spend) -> None:
        """What a call of a model took; once for every call that was made for this request."""
        self._spends.append(spend)

    def cancel(self) -> None:
        """No model was called: it takes a request of those of the minute, and nothing else."""
        self._cancelled = True

    def close(self) -> None:
        """The answer has ended, well or not. Later calls do nothing. Never raises.

        Where nothing was settled, nobody knows what it took: the estimates stand, and the accounts say unknown.
        """
        counters, self._counters = self._counters, None
        if counters is None:
            return
        if not self._spends and not self._cancelled:
            self._spends.append(Spend(model=self._model))
        try:
            counters.settle(self._tenant, self._ask, self._spends)
        except StoreError as error:
            # The place stays taken until this process ends; the answer is the client's all the same.
            log.error("what a request of tenant %s took could not be written: %s", self._tenant.name, error)

    def __enter__(self) -> "Admission":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
