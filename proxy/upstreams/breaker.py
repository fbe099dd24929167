"""When an upstream is left alone: after failures in a row, or for as long as it has asked to be."""

from collections.abc import Callable

from ..observe.upstream_metrics import BreakerState


class CircuitBreaker:
    """Closed while all is well; open for `seconds` after `failures` in a row; then one request at a time is let through as
    a probe, until one succeeds.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, *, failures: int, seconds: float, clock: Callable[[], float]) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._in_a_row = 0
        self._open_until = 0.0
        self._resting_until = 0.0
        self._probe_until = 0.0

    @property
    def wait(self) -> float:
        """Seconds until a request makes sense; 0 for now."""
        now = self._clock()
        until = max(self._resting_until, self._open_until if self._in_a_row >= self._limit else 0.0)
        if now >= until and self._in_a_row >= self._limit:
            until = self._probe_until
        return max(0.0, until - now)

    @property
    def state(self) -> BreakerState:
        if self._in_a_row < self._limit:
            return "closed"
        return "open" if self._clock() < self._open_until else "half_open"

    def enter(self) -> None:
        """A request sets out (`wait` being 0); while half open it is the probe, and none follows before it has ended or
        `seconds` are over."""
        if self._in_a_row >= self._limit:
            self._probe_until = self._clock() + self._seconds

    def succeeded(self) -> None:
        self._in_a_row = 0
        self._probe_until = 0.0

    def failed(self) -> None:
        self._in_a_row += 1
        self._probe_until = 0.0
        if self._in_a_row >= self._limit:
            self._open_until = self._clock() + self._seconds

    def left(self) -> None:
        """The request ended without telling anything, its client having gone."""
        self._probe_until = 0.0

    def rest(self, seconds: float) -> None:
        """It has asked to be left alone for so long (429 with Retry-After)."""
        self._resting_until = max(self._resting_until, self._clock() + seconds)
        self._probe_until = 0.0
