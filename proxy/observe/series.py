"""The series of one process: counted at hand, and handed to prometheus-client when somebody asks.

Its `labels()` checks and converts values under a lock, its `inc` and `observe` take another: half a microsecond to two each,
and a request has twenty.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

OTHER = "other"


class Gathered(Protocol):
    def flush(self) -> None: ...


T = TypeVar("T", bound=Gathered)


class Count:
    """What a counter has gained since the last flush."""

    __slots__ = ("_counter", "_gained")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._gained = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self._gained += amount

    def flush(self) -> None:
        if self._gained:
            self._counter.inc(self._gained)
            self._gained = 0.0


class Tally:
    """What a histogram has observed since the last flush."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_sum")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._bounds = histogram._upper_bounds
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        """As so many calls of the library's `observe`, which has no public way."""
        if not any(self._counts):
            return
        for bucket, count in zip(self._histogram._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(self._sum)
        self._counts = [0] * len(self._counts)
        self._sum = 0.0


class Series(dict[tuple[str, ...], T], Generic[T]):
    """`series["chat", "200"]` is what is gathered for these values; `series["hit",]` for one, `series[()]` for none."""

    def __init__(self, make: Callable[[tuple[str, ...]], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, values: tuple[str, ...]) -> T:
        made = self[values] = self._make(values)
        return made


class Figures:
    """Makes series, and flushes all that it has made."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._made: list[Series[Count] | Series[Tally]] = []

    def counter(self, name: str, text: str, *labels: str) -> Series[Count]:
        counter = Counter(name, text, labels, registry=self._registry)
        series = Series(lambda values: Count(counter.labels(*values) if values else counter))
        self._made.append(series)
        return series

    def histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float]) -> Series[Tally]:
        histogram = Histogram(name, text, labels, buckets=buckets, registry=self._registry)
        series = Series(lambda values: Tally(histogram.labels(*values) if values else histogram))
        self._made.append(series)
        return series

    def flush(self) -> None:
        for series in self._made:
            for gathered in series.values():
                gathered.flush()


class BoundedNames(dict[str, str]):
    """The first `limit` names stand for themselves, all later ones are "other"."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __missing__(self, name: str) -> str:
        if len(self) >= self._limit:
            return OTHER
        self[name] = name
        return name
