"""Series of one metric by their label values, kept at hand, and bounded where the values are not ours.

prometheus-client's `labels()` checks and converts its values under a lock each time: a microsecond, and a request has ten.
"""

from typing import Generic, TypeVar

from prometheus_client.metrics import MetricWrapperBase

OTHER = "other"

T = TypeVar("T", bound=MetricWrapperBase)


class Series(dict[tuple[str, ...], T], Generic[T]):
    """`series["chat", "200"]` is the metric's child of these label values; so is `series["hit",]` of one."""

    def __init__(self, metric: T) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[str, ...]) -> T:
        child = self[values] = self._metric.labels(*values)
        return child


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
