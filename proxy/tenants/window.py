"""Moments in UTC, as seconds since the epoch: when a budget's window began and when it ends."""

from datetime import UTC, datetime
from functools import lru_cache

from .tenant import Window

DAY = 86400


def day_of(now: float) -> int:
    """Days since the epoch."""
    return int(now // DAY)


def moment(seconds: float | None) -> str | None:
    """As text, to the second."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def window_start(window: Window, now: float) -> int:
    """0 for one that has no beginning."""
    if window == "total":
        return 0
    today = day_of(now)
    return today * DAY if window == "day" else _month_start(today)


def window_end(window: Window, now: float) -> int | None:
    """None for one that never ends."""
    if window == "total":
        return None
    if window == "day":
        return (day_of(now) + 1) * DAY
    # 31 days after the first of a month is always in the next one.
    return window_start("month", window_start("month", now) + 31 * DAY)


@lru_cache(maxsize=16)
def _month_start(day: int) -> int:
    return (day - datetime.fromtimestamp(day * DAY, UTC).day + 1) * DAY
