"""Where a reply comes from, as its headers and the metrics tell it."""

from typing import Literal

import msgspec

from ..cache import CacheHit, Neighbour

Outcome = Literal["hit", "trusted", "draft", "shared", "miss", "bypass"]

# Of answers that nothing was computed for.
REUSED: tuple[Outcome, ...] = ("hit", "trusted", "shared")

OUTCOME = "x-penstock-cache"
SIMILARITY = "x-penstock-similarity"
AGE = "x-penstock-age"
SAVED = "x-penstock-saved-ms"


class Provenance(msgspec.Struct):
    """`outcome` of a miss may become that of a near hit until the reply's first byte.

    Attributes:
        similarity: of the question whose completion is used.
        age: seconds since that completion was stored.
        saved: seconds of the engine that are not spent again; None where nobody knows yet.
    """

    outcome: Outcome
    similarity: float | None = None
    age: float | None = None
    saved: float | None = None

    @classmethod
    def of_hit(cls, hit: CacheHit) -> "Provenance":
        return cls("hit", age=hit.age, saved=hit.completion.engine_seconds)

    @classmethod
    def of_trusted(cls, neighbour: Neighbour) -> "Provenance":
        saved = neighbour.completion.engine_seconds
        return cls("trusted", similarity=neighbour.similarity, age=neighbour.age, saved=saved)

    def becomes_draft(self, neighbour: Neighbour) -> None:
        self.outcome, self.similarity, self.age = "draft", neighbour.similarity, neighbour.age

    def headers(self) -> dict[str, str]:
        headers = {OUTCOME: str(self.outcome)}
        if self.similarity is not None:
            headers[SIMILARITY] = f"{self.similarity:.4f}"
        if self.age is not None:
            headers[AGE] = f"{self.age:.0f}"
        if self.saved is not None:
            headers[SAVED] = f"{1000 * self.saved:.0f}"
        return headers
