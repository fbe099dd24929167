"""One request of a tenant, from when it may run to when it has ended, and the calls of models that are made for it.

with tenants.admit(tenant, tokens=expected, cost=estimate) as admission:
    with admission.call(model) as call:
        ...
        call.settle(Spend(model=model, prompt_tokens=12, completion_tokens=34, cost=0.0001))
"""

from collections.abc import Callable
from types import TracebackType

import msgspec

from .counters import Counters, Ended
from .rate_headers import rate_headers
from .spend import Saving, Spend
from .standing import Ask, Standing
from .tenant import Tenant


class Admission:
    """Open until `close`, and until the last of its calls has ended: others may still read what its own client has left.
    Then its place comes free, and what it took is written. Of one event loop.

    `appraise`: adds to what a call took what that saved; asked once all is known, and whenever it is to be told.
    """

    def __init__(
        self, tenant: Tenant, ask: Ask, counters: Counters | None, standing: Standing | None
    ) -> None:
        self.tenant, self._ask = tenant, ask
        self._counters, self._standing = counters, standing
        self.appraise: Callable[[Spend], Spend] = lambda spend: spend
        self._spends: list[Spend] = []
        self._known: list[Spend] = []
        self._is_closed = self._is_settled = False
        self._num_open = 1

    @property
    def headers(self) -> dict[str, str]:
        """What was left of the limits when it was admitted, as `x-ratelimit-*`."""
        return {} if self._standing is None else rate_headers(self.tenant.limits, self._standing)

    @property
    def cost(self) -> float | None:
        """What its calls cost; None where there was none, or that of one is unknown, as of what still runs for others."""
        costs = [spend.cost for spend in self._known if spend.cost is not None]
        num_calls = len(self._known) + self._num_open - (not self._is_closed)
        return sum(costs, 0.0) if costs and len(costs) == num_calls else None

    @property
    def savings(self) -> tuple[Saving, ...]:
        """What they saved; no money where the cost is unknown, which would be no difference to anything."""
        savings = [saving for spend in map(self.appraise, self._known) for saving in spend.savings]
        if savings and self.cost is None:
            savings = [msgspec.structs.replace(saving, cost=None) for saving in savings]
        return tuple(savings)

    def call(self, model: str) -> "Call":
        """A model is asked for it now."""
        self._num_open += 1
        return Call(self, model)

    def close(self) -> None:
        """The request has ended, well or not. Later calls do nothing. Never raises."""
        if not self._is_closed:
            self._is_closed = True
            self._end()

    def _end(self, spend: Spend | None = None) -> None:
        """One of those who hold it open has ended."""
        if spend is not None:
            self._spends.append(spend)
            self._known.append(spend)
        self._num_open -= 1
        if self._num_open == 0 and self._counters is not None:
            spends, self._spends = [self.appraise(spend) for spend in self._spends], []
            self._counters.settle(Ended(self.tenant, self._ask, spends, self._is_settled))
            self._is_settled = True

    def __enter__(self) -> "Admission":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Call:
    """One call of a model. What ends without being settled or refused took nobody knows what: the estimates stand, and the
    accounts say unknown."""

    def __init__(self, admission: Admission, model: str) -> None:
        self._admission = admission
        self._model = model
        self._is_closed = False

    def settle(self, spend: Spend) -> None:
        """It has ended, and took this."""
        self._close(spend)

    def refused(self) -> None:
        """It has ended before anything was computed."""
        self._close(None)

    def close(self) -> None:
        """Where it has not ended yet, it ends as unknown."""
        self._close(Spend(model=self._model))

    def _close(self, spend: Spend | None) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._admission._end(spend)

    def __enter__(self) -> "Call":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
