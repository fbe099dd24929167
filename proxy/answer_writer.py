"""The seam between what a model wrote and the API that it is told in: parts in, events out.

Whatever answers (the engine, an upstream in another API's format), its answer is parts (`answer.py`), and each API that is
not OpenAI's chat has a writer for them. One answer only: these APIs know no `n`.
"""

from typing import Literal, Protocol

import msgspec

from ..errors import PenstockError
from ..scheduler.outputs import Chunk
from .answer import AnswerReader, Layout, Part
from .usage import Usage

Reason = Literal["stop", "length", "tool_calls", "content_filter"]


class Finish(msgspec.Struct, frozen=True):
    """How an answer ended; `stop_string`: the one of the request that ended it, if one did."""

    reason: Reason
    stop_string: str | None = None


class AnswerWriter(Protocol):
    """Writes one answer as the events of a stream. Called in this order; each returns bytes to send, possibly none."""

    def begin(self) -> bytes: ...
    def parts(self, parts: list[Part]) -> bytes: ...
    def end(self, finish: Finish, usage: Usage) -> bytes: ...
    def failed(self, error: PenstockError) -> bytes:
        """The answer breaks off here; nothing follows."""
        ...


class WrittenAnswer:
    """A StreamForm (`reply.py`) of the engine's chunks, for an AnswerWriter."""

    def __init__(self, layout: Layout, writer: AnswerWriter) -> None:
        self._reader = AnswerReader(layout)
        self._writer = writer
        self._begun = False
        self._finish = Finish("stop")

    def chunks(self, batch: list[Chunk]) -> bytes:
        opening = b"" if self._begun else self._writer.begin()
        self._begun = True
        parts: list[Part] = []
        for chunk in batch:
            parts += self._reader.read(chunk.text)
            if chunk.finish_reason is not None:
                parts += self._reader.end()
                self._finish = finish_of(chunk, self._reader)
        return opening + self._writer.parts(parts) if parts else opening

    def end(self, usage: Usage) -> bytes:
        return self._writer.end(self._finish, usage)

    def failed(self, error: PenstockError) -> bytes:
        return self._writer.failed(error)


def finish_of(chunk: Chunk, reader: AnswerReader) -> Finish:
    """Of the last chunk of an answer that `reader` has read to its end."""
    assert chunk.finish_reason is not None
    reason = reader.reason(chunk.finish_reason)
    stopped_by = chunk.stop_reason if isinstance(chunk.stop_reason, str) else None
    return Finish(reason, stopped_by)  # type: ignore[arg-type]  # "abort" and "error" never get here
