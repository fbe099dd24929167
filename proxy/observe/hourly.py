"""Records on their way into the hourly totals: gathered for a moment, then written by all processes into one place.

A process that is killed loses those of its last `GATHERING_SECONDS`, a machine that loses power those of a few seconds
(`tenants/environment.py`).
"""

import asyncio
import logging
import time

from ..tenants.environment import StoreError
from ..tenants.totals import HOUR, Place, Saved, Total, Totals
from .record import RequestRecord

log = logging.getLogger(__name__)

GATHERING_SECONDS = 0.25


class Hourly:
    """A sink of records, of one event loop. What cannot be written is kept, and goes with what comes next."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._gathered: dict[Place, Total] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ended(self, record: RequestRecord) -> None:
        """Requests that named no model, of probes and scrapers above all, are not counted."""
        if record.model_asked is None:
            return
        place = Place(
            int(record.time // HOUR), record.tenant or "", record.model_series or "", record.outcome or ""
        )
        total = self._gathered.get(place)
        if total is None:
            total = self._gathered[place] = Total()
        total.merge(total_of(record))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHERING_SECONDS, self.flush)

    def flush(self) -> None:
        """What waits is written now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._gathered:
            return
        try:
            self._totals.add(self._gathered, time.time())
        except StoreError as error:
            log.error("the hourly totals cannot be written now: %s", error)
        else:
            self._gathered = {}


def total_of(record: RequestRecord) -> Total:
    """One request, as its line in the access log has it."""
    answered = record.outcome is not None
    total = Total(
        requests=1,
        failed=int(record.error is not None and not record.aborted),
        aborted=int(record.aborted),
        unknown_usage=int(answered and (record.prompt_tokens is None or record.completion_tokens is None)),
        unknown_cost=int(answered and record.cost is None),
        prompt_tokens=record.prompt_tokens or 0,
        cached_tokens=record.cached_tokens or 0,
        completion_tokens=record.completion_tokens or 0,
        cost=record.cost or 0.0,
        waited_seconds=record.engine_seconds,
        saved_seconds=record.saved_seconds or 0.0,
    )
    if record.targets == 1 and record.completion_tokens is not None:
        total.alone_tokens, total.alone_seconds = record.completion_tokens, record.engine_seconds
    for saving in record.savings:
        sums, is_known = total.saved.setdefault(saving.by, Saved()), saving.cost is not None
        sums.merge(Saved(int(is_known), saving.cost or 0.0, saving.seconds or 0.0, int(not is_known)))
    return total
