"""Who is served next among tenants: the one that has had the least so far (virtual token counters, Sheng et al. 2024).

A tenant's counter grows by what was computed for it, divided by its weight. One that comes back after a pause starts from
the least of those active: a pause saves up nothing, and debts are not forgotten by a short one.
"""

from collections.abc import Mapping

# An output token occupies a row of a whole step; a prompt's tokens share theirs.
OUTPUT_COST = 2.0
# Counters of tenants that have nothing live, kept for when they come back.
MAX_IDLE = 4096


class TenantShares:
    """Counters by tenant. `weights`: relative shares, which nobody's requests can change; others are what `enter` was last
    told."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._fixed = dict(weights or {})
        self._told: dict[str, float] = {}
        self._active: dict[str, float] = {}
        self._num_live: dict[str, int] = {}
        self._idle: dict[str, float] = {}

    def enter(self, tenant: str, weight: float = 1.0) -> None:
        """A sequence of the tenant became live. `weight`: its share from now on."""
        self._told[tenant] = weight
        if tenant not in self._active:
            least = min(self._active.values(), default=0.0)
            self._active[tenant] = max(self._idle.pop(tenant, 0.0), least)
        self._num_live[tenant] = self._num_live.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """One of its sequences ended."""
        self._num_live[tenant] -= 1
        if not self._num_live[tenant]:
            del self._num_live[tenant]
            self._idle[tenant] = self._active.pop(tenant)
            del self._told[tenant]
            if not self._active:
                self._idle.clear()  # nobody is left to be fair to
            while len(self._idle) > MAX_IDLE:
                del self._idle[next(iter(self._idle))]

    def charge(self, tenant: str, num_tokens: int, *, is_output: bool) -> None:
        cost = num_tokens * OUTPUT_COST if is_output else float(num_tokens)
        self._active[tenant] += cost / self._fixed.get(tenant, self._told[tenant])

    def had(self, tenant: str) -> float:
        """The counter of a tenant with live sequences: who has less goes first."""
        return self._active[tenant]
