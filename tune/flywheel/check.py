"""What is gained in truth: the same questions, answered with the settings as they are and as they would be.

First of questions that the router was made with, the rehearsal: what it shows is what is expected. Then of those put aside.
"""

from collections.abc import Callable, Sequence

import msgspec

from ...cache.trust.bound import lower
from .gain import WORTH, Option
from .timing import Run, seconds_of, spread_of

_CONFIDENCE = 0.99


class Checked(msgspec.Struct, frozen=True):
    """Attributes:
    now, new: seconds of the machine per answer; noise: how far repeats of either lie apart, as a share.
    kept: share of answers that the student gave.
    different: answers that say something else than the model's own.
    """

    questions: int
    now: float
    new: float
    noise: float
    kept: float
    different: int

    @property
    def cheaper(self) -> float:
        return self.now / self.new

    def objection(self, quality: float) -> str | None:
        """Why it is not switched on; None: it may be."""
        cost = self.new / self.now
        if cost > WORTH:
            return f"an answer costs {cost:.2f} times what it does now"
        if cost * (1 + self.noise) > 1:
            return (
                f"an answer costs {cost:.2f} times what it does now, and repeats lie {100 * self.noise:.0f} % apart: run it "
                "again where the machine is quiet"
            )
        if lower(self.different, self.questions, _CONFIDENCE) > 1 - quality:
            return f"{self.different} of {self.questions} answers say something else, too many for the promise {quality:g}"
        return None


class Rehearsed(msgspec.Struct, frozen=True):
    """An option, what it did on questions that the router was made with, and on those put aside if that was as it should."""

    option: Option
    seen: Checked
    checked: Checked | None = None

    def objection(self, quality: float) -> str | None:
        """Why it is not switched on; None: it may be."""
        how, last = ("rehearsed", self.seen) if self.checked is None else ("checked", self.checked)
        found = last.objection(quality)
        return found and f"{self.option.policy}, {how}: {found}"


def checked(now: Sequence[Run], new: Sequence[Run], small: str, same: Callable[[str, str], bool]) -> Checked:
    """Args:
    small: the student's name, as answers bear it.
    same: whether two answers say the same.
    """
    first, other = now[0], new[0]
    count = len(first.texts)
    return Checked(
        count,
        seconds_of(now) / count,
        seconds_of(new) / count,
        max(spread_of(now), spread_of(new)),
        other.models.count(small) / count,
        sum(not same(one, two) for one, two in zip(other.texts, first.texts, strict=True)),
    )
