"""What is known of one request, gathered while it is answered. Figures, access log and spans read it, and nothing else.

Knows neither HTTP nor where it is sent. Unknown is None, never 0. All times are `time.perf_counter` seconds.
"""

import time
from typing import Literal

import msgspec

from ..provenance import Outcome
from ..tenants.spend import Saving

Operation = Literal["chat", "text_completion", "embeddings"]

# Of prompt and answer, where `log_prompts` has them kept: a line then mostly stays below what a pipe takes in one piece.
KEPT_CHARACTERS = 500


class RequestRecord(msgspec.Struct, kw_only=True, eq=False):
    """One request, from its first byte to its last.

    Attributes:
        route: the route's pattern, never the path.
        started: when its first byte was read; `time`: the same on the wall clock, in seconds since 1970.
        keeps_text: the operator wants prompt and answer, of which `prompt` and `answer` are excerpts.
        tenant: None where it was refused before that was known.
        operation: as OpenTelemetry names it; None for what asks no model.
        model_asked: as the client wrote it: any text. `model`: the served name, once that is found;
            `model_series`: the same for figures, one of few.
        outcome: what the cache did; None for what is no generation, or never became one.
        handed_over: when engine, upstream or cache were asked for the answer. `first_token`: when its first piece came.
        engine_seconds: waited for engine or upstream since `handed_over`.
        upload_seconds, write_seconds: waited for the client: for its body, and for it to read.
        completed: an answer that came whole. `cut`: one that did not, but for refusals.
        error: the code, or else type, of the error that the client was told.
        routing: why a learned route went as it did.
        upstream: who answered, if it was no engine of ours; `targets`: how many models were asked until one did.
        cost: money, in the currency of the configured prices. savings: what was not spent.
        saved_seconds: of the engine, spared by the cache.
        traceparent, tracestate: W3C trace context to hand on to upstreams. `span`: the tracer's own, where there is one.
        aborted: the client left before its end.
    """

    request_id: str
    method: str
    route: str
    started: float
    time: float
    keeps_text: bool = False

    tenant: str | None = None
    operation: Operation | None = None
    model_asked: str | None = None
    model: str | None = None
    model_series: str | None = None
    response_id: str | None = None
    stream: bool = False

    outcome: Outcome | None = None
    handed_over: float | None = None
    first_token: float | None = None
    engine_seconds: float = 0.0
    upload_seconds: float = 0.0
    write_seconds: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reasons: list[str] = []
    completed: bool = False
    cut: bool = False
    saved_seconds: float | None = None
    error: str | None = None

    routing: str | None = None
    upstream: str | None = None
    targets: int = 0
    cost: float | None = None
    savings: tuple[Saving, ...] = ()

    traceparent: str | None = None
    tracestate: str | None = None
    span: object | None = None
    prompt: str | None = None
    answer: str | None = None

    status: int = 0
    aborted: bool = False
    bytes_out: int = 0
    ended: float | None = None
    _asked: float | None = None

    def asks(self, operation: Operation | None, *, model: str, stream: bool = False) -> None:
        """What the client wants is understood."""
        self.operation, self.model_asked, self.stream = operation, model, stream

    def hand_over(self) -> None:
        """From here on the answer is waited for."""
        self.wants_next()
        if self.handed_over is None:
            self.handed_over = self._asked

    def piece_came(self) -> float:
        """Returns the time."""
        now = self.waited()
        if self.first_token is None:
            self.first_token = now
        return now

    def wants_next(self) -> None:
        """The last piece is dealt with; the next is waited for."""
        self._asked = time.perf_counter()

    def waited(self) -> float:
        """Waits no more. Returns the time."""
        now = time.perf_counter()
        if self._asked is not None:
            self.engine_seconds += now - self._asked
            self._asked = None
        return now

    def used(self, prompt: int | None, cached: int | None, completion: int | None) -> None:
        """Tokens, as far as they are known."""
        self.prompt_tokens, self.cached_tokens, self.completion_tokens = prompt, cached, completion

    @property
    def time_to_first_token(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.started

    @property
    def duration(self) -> float:
        """Seconds so far, or until its end."""
        return (time.perf_counter() if self.ended is None else self.ended) - self.started

    @property
    def saved_cost(self) -> float | None:
        """As far as it is known; None where nothing is."""
        costs = [saving.cost for saving in self.savings if saving.cost is not None]
        return sum(costs, 0.0) if costs else None

    @property
    def overhead_before(self) -> float | None:
        """Seconds of this proxy between the request's first byte and the hand-over."""
        if self.handed_over is None:
            return None
        return max(0.0, self.handed_over - self.started - self.upload_seconds)

    @property
    def overhead_after(self) -> float | None:
        """Seconds of this proxy after the first token: all that was no waiting for engine, upstream or client."""
        if self.first_token is None or self.handed_over is None or self.ended is None:
            return None
        waited = self.engine_seconds - (self.first_token - self.handed_over)
        return max(0.0, self.ended - self.first_token - waited - self.write_seconds)

    @property
    def overhead(self) -> float:
        """Seconds of this proxy alone."""
        return max(0.0, self.duration - self.engine_seconds - self.upload_seconds - self.write_seconds)


def excerpt_of_prompt(text: str) -> str:
    """The end of it, where the question is."""
    return text[-KEPT_CHARACTERS:]


def excerpt_of_answer(text: str) -> str:
    return text[:KEPT_CHARACTERS]
