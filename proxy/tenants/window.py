"""When a budget's window began and when it ends, in UTC. Moments are seconds since the epoch."""

from datetime import UTC, datetime

from .tenant import Window

DAY = 86400


def day_of(now: float) -> int:
    """Days since the epoch."""
    return int(now // DAY)


def window_start(window: Window, now: float) -> int:
    """0 for one that has no beginning."""
    if window == "total":
        return 0
    today = day_of(now) * DAY
    return today if window == "day" else today - (datetime.fromtimestamp(now, UTC).day - 1) * DAY


def window_end(window: Window, now: float) -> int | None:
    """None for one that never ends."""
    if window == "total":
        return None
    if window == "day":
        return (day_of(now) + 1) * DAY
    # 31 days after the first of a month is always in the next one.
    return window_start("month", window_start("month", now) + 31 * DAY)
