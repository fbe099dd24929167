"""How long a step takes on this machine, learnt from the steps themselves. Knows no clock and no sequence.

Steps are kept by size class, each with a moving average, and what lies between is interpolated: the time of a step is no
line (a few more rows of a product bound by memory are nearly free, the hundredth is not), and differs between machines.
What attention adds is one: so much for each key that a row looks at, whatever the size of the step.
"""

from collections.abc import Callable

# How much a new step moves its class's average. A step that was interrupted is not believed at once.
NEWS = 0.2
# The same for the averages that the time of a key is learnt from. Contexts grow slowly: an average that followed them at
# once would leave nothing to see.
SLOW_NEWS = 0.02
# The first steps of a class are often slow for once (cold memory, another process): among so many the fastest is believed.
FIRST_STEPS = 3
# How much of what is known of a key's time a step leaves standing.
MEMORY = 0.999
# Squared differences in keys that count for no difference in time: below a few thousand keys more, noise is all there is.
DOUBT = 1e8
# A class takes at most this many times its average from one step: another process had the cores.
MOST_AT_ONCE = 4.0
# A step never takes less than this share of its class's average, however few keys it looks at.
LEAST_SHARE = 0.25


class _Class:
    """Averages of the steps of one size."""

    __slots__ = ("keys", "seconds", "slow_keys", "slow_seconds", "steps", "tokens")

    def __init__(self, tokens: float, keys: float, seconds: float) -> None:
        self.tokens, self.keys, self.seconds = tokens, keys, seconds
        self.slow_keys, self.slow_seconds = keys, seconds
        self.steps = 1


class StepTimes:
    """Seconds of a step by its number of tokens and of the keys that these attend to, summed over tokens."""

    def __init__(self) -> None:
        self._classes: dict[int, _Class] = {}
        # Of all classes: how seconds vary with keys.
        self._covariance = 0.0
        self._variance = 0.0
        self._points: list[tuple[float, float, float]] = []
        # Answers since the last step: every sequence of a step asks the same.
        self._known: dict[int, tuple[float, float]] = {}

    def record(self, num_tokens: int, seconds: float, num_keys: int = 0) -> None:
        size = num_tokens.bit_length() * 2 + (num_tokens >> max(0, num_tokens.bit_length() - 2) & 1)
        known = self._classes.get(size)
        if known is None:
            self._classes[size] = _Class(num_tokens, num_keys, seconds)
        elif known.steps < FIRST_STEPS and seconds < known.seconds:
            steps = known.steps + 1
            known = self._classes[size] = _Class(num_tokens, num_keys, seconds)
            known.steps = steps
        else:
            known.steps += 1
            seconds = min(seconds, MOST_AT_ONCE * known.seconds)
            more = num_keys - known.slow_keys
            self._covariance = MEMORY * self._covariance + more * (seconds - known.slow_seconds)
            self._variance = MEMORY * self._variance + more * more
            known.tokens += NEWS * (num_tokens - known.tokens)
            known.keys += NEWS * (num_keys - known.keys)
            known.seconds += NEWS * (seconds - known.seconds)
            known.slow_keys += SLOW_NEWS * more
            known.slow_seconds += SLOW_NEWS * (seconds - known.slow_seconds)
        self._points.clear()
        self._known.clear()

    @property
    def seconds_per_key(self) -> float:
        return max(0.0, self._covariance / (self._variance + DOUBT))

    def seconds(self, num_tokens: int, num_keys: int | None = None) -> float | None:
        """None before anything was measured. Never less for more tokens; beyond what was seen, in proportion.

        `num_keys`: None for as many as such steps had of late.
        """
        known = self._known.get(num_tokens)
        if known is None:
            if not self._classes:
                return None
            known = self._known[num_tokens] = self._interpolated(num_tokens)
        seconds, keys = known
        if num_keys is None:
            return seconds
        return max(LEAST_SHARE * seconds, seconds + self.seconds_per_key * (num_keys - keys))

    def seconds_of_nothing_more(self, num_tokens: int, num_keys: int, most: int) -> float | None:
        """Where the line through two larger sizes, the first of at most `most` tokens, arrives at `num_tokens`.

        None where no two such were seen.

        The second is at least as far from the first as that is from `num_tokens`, else the line would be one of their noise.
        Of several such lines the lowest: one size that was slow for once must not speak for all. So a first size is not
        believed either before it was seen a few times; a second that took too long makes a line too low.
        """
        of_keys = self.seconds_per_key
        seen = sorted(
            (own.tokens, own.seconds - of_keys * (own.keys - num_keys), own.steps)
            for own in self._classes.values()
            if own.tokens > num_tokens
        )
        lines: list[float] = []
        for index, (near, seconds, steps) in enumerate(seen):
            if near > most:
                break
            far = next((other for other in seen[index + 1 :] if other[0] + num_tokens >= 2 * near), None)
            if steps >= FIRST_STEPS and far is not None:
                slope = max(0.0, far[1] - seconds) / (far[0] - near)
                lines.append(seconds - slope * (near - num_tokens))
        return min(lines, default=None)

    def most_tokens(
        self, seconds: float, least: int, most: int, num_keys: Callable[[int], int] | None = None
    ) -> int:
        """The largest number of tokens from `least` to `most` whose step takes at most `seconds`; `least` if none does.

        `num_keys`: how many keys so many tokens attend to; None for as many as such steps had of late.
        """
        low, high = least, most
        while low < high:
            middle = (low + high + 1) // 2
            expected = self.seconds(middle, None if num_keys is None else num_keys(middle))
            if expected is None or expected <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def _interpolated(self, num_tokens: int) -> tuple[float, float]:
        """Seconds and keys."""
        points = self._sorted_points()
        below = above = None
        for point in points:
            if point[0] <= num_tokens:
                below = point
            else:
                above = point
                break
        if below is None:
            # Fewer tokens than ever: no step costs less than its share, nor more than a larger one.
            return points[0][1:]
        if above is None:
            tokens, seconds, keys = below
            return seconds + self._last_slope() * (num_tokens - tokens), keys
        share = (num_tokens - below[0]) / (above[0] - below[0])
        return below[1] + share * (above[1] - below[1]), below[2] + share * (above[2] - below[2])

    def _last_slope(self) -> float:
        points = self._sorted_points()
        tokens, seconds, _ = points[-1]
        if len(points) == 1:
            # Nothing is known of larger steps: a guess that a measurement soon replaces.
            return seconds / tokens / 16
        before_tokens, before, _ = points[-2]
        return (seconds - before) / (tokens - before_tokens)

    def _sorted_points(self) -> list[tuple[float, float, float]]:
        if not self._points:
            highest = 0.0
            for own in sorted(self._classes.values(), key=lambda own: own.tokens):
                highest = max(highest, own.seconds)
                self._points.append((own.tokens, highest, own.keys))
        return self._points
