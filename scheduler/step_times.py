"""How long a step of so many tokens takes on this machine, learnt from the steps themselves. Knows no clock and no sequence.

Steps are kept by size class, each with a moving average, and what lies between is interpolated: the time of a step is no
line (a few more rows of a product bound by memory are nearly free, the hundredth is not), and differs between machines.
"""

# How much a new step moves its class's average. A step that was interrupted is not believed at once.
NEWS = 0.2
# A class takes at most this many times its average from one step: another process had the cores.
MOST_AT_ONCE = 4.0


class StepTimes:
    """Seconds of a step by its number of tokens."""

    def __init__(self) -> None:
        # By size class: the average number of tokens and the average seconds of its steps.
        self._classes: dict[int, tuple[float, float]] = {}
        self._points: list[tuple[float, float]] = []
        # Answers since the last step: every sequence of a step asks the same.
        self._known: dict[int, float] = {}

    def record(self, num_tokens: int, seconds: float) -> None:
        size = num_tokens.bit_length() * 2 + (num_tokens >> max(0, num_tokens.bit_length() - 2) & 1)
        known = self._classes.get(size)
        if known is None:
            self._classes[size] = (float(num_tokens), seconds)
        else:
            tokens, average = known
            seconds = min(seconds, MOST_AT_ONCE * average)
            self._classes[size] = (
                tokens + NEWS * (num_tokens - tokens),
                average + NEWS * (seconds - average),
            )
        self._points.clear()
        self._known.clear()

    def seconds(self, num_tokens: int) -> float | None:
        """None before anything was measured. Never less for more tokens; beyond what was seen, in proportion."""
        known = self._known.get(num_tokens)
        if known is None and self._classes:
            known = self._known[num_tokens] = self._interpolated(num_tokens)
        return known

    def _interpolated(self, num_tokens: int) -> float:
        points = self._sorted_points()
        below = above = None
        for tokens, seconds in points:
            if tokens <= num_tokens:
                below = (tokens, seconds)
            else:
                above = (tokens, seconds)
                break
        if below is None:
            # Fewer tokens than ever: no step costs less than its share, nor more than a larger one.
            return points[0][1]
        if above is None:
            tokens, seconds = below
            slope = self._last_slope()
            return seconds + slope * (num_tokens - tokens)
        share = (num_tokens - below[0]) / (above[0] - below[0])
        return below[1] + share * (above[1] - below[1])

    def most_tokens(self, seconds: float, least: int, most: int) -> int:
        """The largest number of tokens from `least` to `most` whose step takes at most `seconds`; `least` if none does."""
        low, high = least, most
        while low < high:
            middle = (low + high + 1) // 2
            expected = self.seconds(middle)
            if expected is None or expected <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _last_slope(self) -> float:
        points = self._sorted_points()
        tokens, seconds = points[-1]
        if len(points) == 1:
            return (
                seconds / tokens / 16
            )  # nothing is known of larger steps: a guess that a measurement soon replaces
        before_tokens, before = points[-2]
        return (seconds - before) / (tokens - before_tokens)

    def _sorted_points(self) -> list[tuple[float, float]]:
        if not self._points:
            highest = 0.0
            for tokens, seconds in sorted(self._classes.values()):
                highest = max(highest, seconds)
                self._points.append((tokens, highest))
        return self._points
