"""What was saved in the last day, from the hourly totals. Hours that are over are read once, so that looking stays cheap."""

import time
from collections.abc import Callable, Iterable

import msgspec

from ..observe.savings import Savings, savings_of
from ..tenants.totals import HOUR, Row, Total, Totals

HOURS = 24


class Day:
    """To be asked in a thread, one at a time. `clock`: seconds since the epoch."""

    def __init__(self, totals: Totals, clock: Callable[[], float] = time.time) -> None:
        self._totals = totals
        self._clock = clock
        self._hour = 0
        self._over: list[Row] = []

    def savings(self) -> Savings:
        now = self._clock()
        hour = int(now // HOUR)
        # A request is counted in the hour in which it began, so that the last one may still grow.
        growing = hour - 1
        since = (hour - HOURS + 1) * HOUR
        if hour != self._hour:
            self._over = _merged(row for row in self._totals.rows(since) if row.place.hour < growing)
            self._hour = hour  # now that they are read: what failed is tried again
        rows = self._over + self._totals.rows(growing * HOUR)
        return savings_of(rows, since=since, until=int(now))


def _merged(rows: Iterable[Row]) -> list[Row]:
    """Of all hours together."""
    sums: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        place = row.place
        names = (place.tenant, place.model, place.outcome)
        if names not in sums:
            sums[names] = Row(msgspec.structs.replace(place, hour=0), Total())
        sums[names].total.merge(row.total)
    return list(sums.values())
