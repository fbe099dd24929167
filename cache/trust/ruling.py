"""What may be made of a near hit, and why. Pure: from two questions and what stands around them."""

from collections.abc import Sequence

import msgspec

from ..values import Neighbour
from .features import Neighbourhood, features
from .guards import DEFAULT_GUARDS, GUARDS, GuardSet, differing
from .policy import Decision, Observation

# A longer question may go on behind what the embedding model reads.
MAX_TRUSTED_CHARACTERS = 600


class Candidate(msgspec.Struct, frozen=True):
    """A near hit as the policy sees it.

    Attributes:
        refused: the guarded category in which the questions differ, so that it is never served unverified; None for none.
        observation: None where it is refused.
    """

    neighbour: Neighbour
    refused: str | None
    observation: Observation | None


class Ruling(msgspec.Struct, frozen=True):
    """Attributes:
    decision: the policy's; None for a near hit that the guards refuse.
    reason: one word, for headers, metrics and `penstock cache explain`.
    """

    candidate: Candidate
    decision: Decision | None
    reason: str

    @property
    def trusted(self) -> bool:
        return self.decision is not None and self.decision.serve


def candidate_of(
    question: str, neighbours: Sequence[Neighbour], guards: GuardSet = DEFAULT_GUARDS
) -> Candidate:
    """The nearest of at least one neighbour, seen among the others."""
    nearest, *others = neighbours
    refused = refusal(question, nearest.question.text, guards)
    if refused is not None:
        return Candidate(nearest, refused, None)
    answer = _answer(nearest)
    rivals = [other.similarity for other in others if _answer(other) != answer]
    around = Neighbourhood(len(others) - len(rivals), max(rivals, default=0.0))
    found = features(question, nearest.question.text, nearest.similarity, around)
    return Candidate(nearest, None, Observation(entry_number(nearest.place), found))


def refusal(question: str, other: str, guards: GuardSet = DEFAULT_GUARDS) -> str | None:
    """The guarded category in which two questions differ, "length" where they are too long to tell; None for none."""
    if max(len(question), len(other)) > MAX_TRUSTED_CHARACTERS:
        return "length"
    return differing(question, other, GUARDS[guards])


def entry_number(place: bytes) -> int:
    """What the policy calls an entry: the last 64 bits of its place, which are a hash."""
    return int.from_bytes(place[-8:], "little")


def _answer(neighbour: Neighbour) -> list[str]:
    return [choice.text for choice in neighbour.completion.choices]
