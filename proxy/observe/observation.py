"""One answer as the client of one request gets it: its pieces are timed, and its end goes into the record."""

from collections.abc import Sequence

from ..metrics import Metrics
from ..provenance import Provenance
from .record import RequestRecord


class Observation:
    """`provenance` is final with the first piece.

    Attributes:
        hand_over: to be called when the answer begins to be waited for; `wants_next`: when a piece is dealt with; `waited`:
            when there is none any more.
        refused: it ended with an error before the first piece.
    """

    def __init__(self, metrics: Metrics, record: RequestRecord, provenance: Provenance) -> None:
        self.record = record
        self.hand_over = record.hand_over
        self.wants_next = record.wants_next
        self.waited = record.waited
        self.refused = False
        self._metrics = metrics
        self._provenance = provenance
        self._last: float | None = None
        self._between = metrics.between_tokens

    def piece(self) -> None:
        if self._last is None:
            now = self.record.piece_came()
            self._metrics.first_token(self._provenance.outcome, now - self.record.started)
        else:
            now = self.waited()
            self._between(now - self._last)
        self._last = now

    def queued(self, seconds: float) -> None:
        self._metrics.queued(seconds)

    def close(self, *, whole: bool, finish_reasons: Sequence[str]) -> None:
        """`whole`: the answer came to its end."""
        record, provenance = self.record, self._provenance
        # What was refused never became a generation.
        record.outcome = None if self.refused else provenance.outcome
        record.saved_seconds = None if self.refused else provenance.saved
        record.completed = whole
        record.cut = not whole and not self.refused
        record.finish_reasons = list(finish_reasons)


class Unobserved(Observation):
    """Of an answer that nobody waits for: it is in no figure, and its record is nobody's."""

    def piece(self) -> None:
        self._last = self.record.piece_came()

    def queued(self, seconds: float) -> None:
        pass
