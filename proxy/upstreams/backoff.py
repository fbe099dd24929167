"""How long to wait before asking again. Pure functions."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_SECONDS = 0.25
MOST_SECONDS = 8.0
# A longer Retry-After is not waited for: the next target is asked, or the client told.
PATIENCE_SECONDS = 10.0


def backoff(attempt: int, draw: float) -> float:
    """Seconds after failure number `attempt` (from 0): doubling, and anything between half and all of it, so that clients
    that failed together do not return together. `draw`: uniform in [0, 1)."""
    most = min(FIRST_SECONDS * 2.0**attempt, MOST_SECONDS)
    return most * (0.5 + 0.5 * draw)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None for none that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
