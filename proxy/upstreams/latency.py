"""How long first tokens have taken lately, and from when on one is late."""

from collections import deque

WINDOW = 200
# Before so many are known, nothing is called late.
LEAST = 20
# Second requests cost money, and most where the upstream is slow because it has too much to do.
MOST_HEDGED = 0.1


class Latencies:
    """Of one upstream. `percentile`: the share of first tokens that come in time; None: none is ever late."""

    def __init__(self, percentile: float | None) -> None:
        self._percentile = percentile
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._hedged = 0.0

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    @property
    def late(self) -> float | None:
        """Seconds after which to ask a second time; None for not at all."""
        if self._percentile is None or len(self._seconds) < LEAST or self._hedged > MOST_HEDGED:
            return None
        return sorted(self._seconds)[int(self._percentile * len(self._seconds))]

    def asked(self, *, twice: bool) -> None:
        """Follows the share of requests that were asked twice, over about the last hundred."""
        self._hedged += (float(twice) - self._hedged) / 100
