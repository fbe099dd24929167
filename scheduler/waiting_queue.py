"""The sequences that wait, and which of them is next: by priority, tenants' shares, deadline, and arrival, in this order.

Within a tenant, what was running already comes first. Deadlines order a tenant's own sequences only: a tight one must
not buy a tenant more than its share.
"""

import heapq
import math
from collections.abc import Iterator

from .sequence import Sequence, Status
from .tenant_shares import TenantShares

Rank = tuple[bool, float, int]


class WaitingQueue:
    """A heap for every priority and tenant. Removal is lazy: what no longer waits is skipped when it comes up."""

    def __init__(self, shares: TenantShares) -> None:
        self._shares = shares
        self._heaps: dict[int, dict[str, list[tuple[Rank, Sequence]]]] = {}
        self._waiting: dict[Sequence, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting)

    def push(self, seq: Sequence) -> None:
        assert seq.status is Status.WAITING and seq not in self._waiting
        self._waiting[seq] = None
        heaps = self._heaps.setdefault(seq.urgency.priority, {})
        heapq.heappush(heaps.setdefault(seq.tenant, []), (_rank(seq), seq))

    def remove(self, seq: Sequence) -> None:
        """A sequence that waits was ended."""
        del self._waiting[seq]

    def peek(self) -> Sequence | None:
        """Who is next; None when nobody waits."""
        for priority in sorted(self._heaps):
            heaps = self._heaps[priority]
            for tenant in list(heaps):
                heap = heaps[tenant]
                while heap and heap[0][1] not in self._waiting:
                    heapq.heappop(heap)
                if not heap:
                    del heaps[tenant]
            if heaps:
                tenant = min(heaps, key=self._shares.had)
                return heaps[tenant][0][1]
            del self._heaps[priority]
        return None

    def pop(self) -> Sequence:
        """Take out who is next."""
        seq = self.peek()
        assert seq is not None, "nobody waits"
        heapq.heappop(self._heaps[seq.urgency.priority][seq.tenant])
        del self._waiting[seq]
        return seq


def _rank(seq: Sequence) -> Rank:
    return (not seq.was_admitted, seq.first_token_due or math.inf, seq.number)
