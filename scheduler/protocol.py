"""What an engine and its clients say to each other: length-prefixed MessagePack frames over a Unix socket.

One message per engine step and client, whatever the number of sequences, so that the per-token cost stays small.
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from .. import errors
from .outputs import Delta, EngineStats, ModelInfo
from .sampling_params import SamplingParams
from .urgency import ORDINARY, Urgency

HEADER_BYTES = 4

Message = TypeVar("Message")


class Add(msgspec.Struct, tag=True, array_like=True):
    """`resume`: completions that an engine before this one did not finish, with the tokens they have had from it."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    tenant: str
    draft_token_ids: list[int] | None = None
    urgency: Urgency = ORDINARY
    resume: dict[int, list[int]] | None = None
    weight: float = 1.0


class Abort(msgspec.Struct, tag=True, array_like=True):
    """`index` None aborts the whole request; otherwise one completion, whose text is complete."""

    request_id: str
    index: int | None


class Suggest(msgspec.Struct, tag=True, array_like=True):
    """A draft that was found after the request had been sent. Nothing answers it: it may well come too late."""

    request_id: str
    token_ids: list[int]


class Hello(msgspec.Struct, tag=True, array_like=True):
    """First message to every client, once the model is loaded."""

    info: ModelInfo
    stats: EngineStats


class LoadFailed(msgspec.Struct, tag=True, array_like=True):
    message: str


class Refused(msgspec.Struct, tag=True, array_like=True):
    request_id: str
    error: str
    message: str
    param: str | None
    retry_after: float | None

    @classmethod
    def of(cls, request_id: str, error: errors.PenstockError) -> "Refused":
        return cls(request_id, type(error).__name__, error.message, error.param, error.retry_after)

    def to_error(self) -> errors.PenstockError:
        kind: type[errors.PenstockError] = getattr(errors, self.error)
        return kind(self.message, param=self.param, retry_after=self.retry_after)


class StepDone(msgspec.Struct, tag=True, array_like=True):
    deltas: list[Delta]
    stats: EngineStats


ToEngine = Add | Abort | Suggest
ToClient = Hello | LoadFailed | Refused | StepDone

_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "little") + body


class FrameDecoder(Generic[Message]):
    """Cuts a byte stream into messages."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add received bytes; yields every message that is now whole."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            stop = body + int.from_bytes(self._buffer[start:body], "little")
            if len(self._buffer) < stop:
                break
            message = self._decoder.decode(memoryview(self._buffer)[body:stop].tobytes())
            start = stop
            yield message
        del self._buffer[:start]
