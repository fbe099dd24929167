"""What the trusted rung has learnt, family by family: for an operator who wants to know why it serves, or does not."""

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..key import TENANT_BYTES
from .labels import SAME, read
from .policy import TrustPolicy

if TYPE_CHECKING:
    from ..opened import OpenedCache


class Family(msgspec.Struct, frozen=True):
    """A tenant's questions to a model.

    Attributes:
        name: 24 bytes, of which the first 16 are the tenant's hash.
        labels, same: near hits that the model verified, and those whose answer was its own.
        explored, explored_same: of these, such that could have been served and were not, by chance.
        threshold: lowest score that is served under the bound; infinite while nothing is.
        error_rate: of what is at or above it, as estimated.
        scores: of all labels, by today's policy.
        is_same: which of them were the same answer.
    """

    name: bytes
    labels: int
    same: int
    explored: int
    explored_same: int
    threshold: float
    error_rate: float
    scores: NDArray[np.float64]
    is_same: NDArray[np.bool_]

    @property
    def tenant(self) -> bytes:
        return self.name[:TENANT_BYTES]

    @property
    def serves(self) -> bool:
        return math.isfinite(self.threshold)

    @property
    def servable(self) -> int:
        """Labelled near hits at or above the threshold."""
        return int((self.scores >= self.threshold).sum())


def families(cache: "OpenedCache", max_error_rate: float) -> list[Family]:
    """Those with labels, the most first. Of those that the guards refuse nothing is kept.

    Raises ValueError for a `max_error_rate` that is none.
    """
    log = cache.label_log
    with cache.environment.reading() as txn:
        names = log.families(txn)
    found = [_family(name, policy_of(cache, name, max_error_rate)) for name in names]
    return sorted(found, key=lambda family: -family.labels)


def policy_of(cache: "OpenedCache", family: bytes, max_error_rate: float) -> TrustPolicy:
    """What a server would decide by, from all labels there are."""
    policy = TrustPolicy(max_error_rate)
    policy.fold(_rows(cache, family))
    policy.refit()
    return policy


def _rows(cache: "OpenedCache", name: bytes) -> bytes:
    parts, since, count = [], 0, 1
    while since < count:
        with cache.environment.reading() as txn:
            rows, since, count = cache.label_log.read(txn, name, since)
        parts.append(rows)
    return b"".join(parts)


def _family(name: bytes, policy: TrustPolicy) -> Family:
    rows, calibration = read(policy.pack()), policy.calibration
    same, explored = rows["flags"] & SAME != 0, rows["standing_for"] > 1
    scores = rows["values"].astype(np.float64) @ np.array(calibration.weights) + calibration.offset
    return Family(
        name=name,
        labels=len(rows),
        same=int(same.sum()),
        explored=int(explored.sum()),
        explored_same=int((explored & same).sum()),
        threshold=calibration.threshold,
        error_rate=calibration.error_rate,
        scores=scores,
        is_same=same,
    )


def plot(found: list[Family], file: str) -> None:
    """Scores of the labels, same answers above and others below, with the threshold, for up to six families.

    Raises ImportError without matplotlib (`penstock[plot]`).
    """
    from matplotlib.figure import Figure

    shown = found[:6]
    figure = Figure(figsize=(8, 1 + 2 * len(shown)), layout="constrained")
    for place, family in enumerate(shown):
        axes = figure.add_subplot(len(shown), 1, place + 1)
        bins = np.linspace(family.scores.min(initial=-4), family.scores.max(initial=4), 60)
        for is_same, colour, sign in ((True, "#2a7f62", 1), (False, "#c0392b", -1)):
            counts, edges = np.histogram(family.scores[family.is_same == is_same], bins)
            label = "same answer" if is_same else "another answer"
            axes.bar(edges[:-1], sign * counts, np.diff(edges), align="edge", color=colour, label=label)
        if family.serves:
            axes.axvline(family.threshold, color="black", linewidth=1, label="served from here on")
        axes.set_title(f"{family.labels} labels of {family.tenant.hex()[:8]}", fontsize=9)
        axes.set_ylabel("labels")
        axes.legend(fontsize=7)
    figure.axes[-1].set_xlabel("score (log-odds of the same answer)")
    figure.savefig(file, dpi=120)
