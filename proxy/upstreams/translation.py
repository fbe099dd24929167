"""An upstream asked in its own API for a client that speaks another: requests go by way of a chat request, and answers by
way of parts.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import orjson

from ...cache import CachedChoice, CachedCompletion
from ...errors import PenstockError, UpstreamError
from ..answer import Part
from ..answer_writer import AnswerWriter, Finish
from ..usage import Usage
from .events import data_of
from .reading import MAX_KEPT_CHARACTERS, TokenCounts, decoded

UNKNOWN = Usage(0, 0, 0)


class PartsReader(Protocol):
    """Reads an answer in an upstream's API, its events one at a time or all of it."""

    finish: Finish | None

    @property
    def usage(self) -> Usage | None: ...
    @property
    def finished(self) -> bool: ...
    def read(self, event: Mapping[str, Any]) -> list[Part]: ...
    def whole(self, body: Mapping[str, Any]) -> list[Part]: ...


class Telling(msgspec.Struct, frozen=True):
    """How one client is told its answer."""

    writer: AnswerWriter
    body: Callable[[list[Part], Finish, Usage], dict[str, object]]


class Kept(msgspec.Struct, frozen=True):
    """What the cache keeps of a translated answer."""

    parts: list[tuple[str, str, int]]
    finish: Finish
    usage: Usage | None


class Translation:
    """A Reading (reading.py) whose bytes are those of the client's API."""

    def __init__(self, reader: PartsReader, telling: Telling, *, keep: bool) -> None:
        self.tokens: TokenCounts | None = None
        self.finish_reasons: list[str] = []
        self._reader = reader
        self._telling = telling
        self._keep = keep
        self._parts: list[Part] = []
        self._size = 0
        self._begun = False

    @property
    def finished(self) -> bool:
        return self._reader.finished

    def shown(self, event: bytes) -> bytes:
        data = data_of(event)
        if not data or data == b"[DONE]":
            return b""
        whole = decoded(data)
        if "error" in whole and "choices" not in whole:
            raise UpstreamError(f"The upstream failed: {_message(whole['error'])}")
        parts = self._reader.read(whole)
        self._gather(parts)
        written = self._telling.writer.parts(parts) if parts else b""
        if self._begun:
            return written
        self._begun = True
        return self._telling.writer.begin() + written

    def end(self) -> bytes:
        self._settle()
        finish, usage = self._reader.finish or Finish("stop"), self._reader.usage
        return self._telling.writer.end(finish, usage or UNKNOWN)

    def whole(self, body: bytes) -> bytes:
        parts = self._reader.whole(decoded(body))
        self._gather(parts)
        self._settle()
        finish = self._reader.finish or Finish("stop")
        return orjson.dumps(self._telling.body(parts, finish, self._reader.usage or UNKNOWN))

    def failed(self, error: PenstockError) -> bytes:
        return self._telling.writer.failed(error)

    def completion(self, *, seconds: float) -> CachedCompletion | None:
        finish = self._reader.finish
        if not self._keep or finish is None or finish.reason not in ("stop", "tool_calls"):
            return None
        kept = Kept([(part.kind, part.text, part.call) for part in self._parts], finish, self._reader.usage)
        text = "".join(part.text for part in self._parts if part.kind == "content")
        return CachedCompletion(
            choices=[CachedChoice(text, [], finish.reason, None, None, msgspec.json.encode(kept))],
            prompt_tokens=(self.tokens.prompt if self.tokens else None) or 0,
            engine_seconds=seconds,
        )

    def _gather(self, parts: list[Part]) -> None:
        if self._keep:
            self._parts += parts
            self._size += sum(len(part.text) + 16 for part in parts)
            self._keep = self._size <= MAX_KEPT_CHARACTERS

    def _settle(self) -> None:
        if self._reader.finish is not None:
            self.finish_reasons = [self._reader.finish.reason]
        if (usage := self._reader.usage) is not None:
            self.tokens = TokenCounts(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


def told_again(wire: bytes, telling: Telling, *, stream: bool) -> bytes:
    """A kept answer as its client wants it."""
    kept = msgspec.json.decode(wire, type=Kept)
    parts = [Part(kind, text, call) for kind, text, call in kept.parts]  # type: ignore[arg-type]  # as they were kept
    usage = kept.usage or UNKNOWN
    if not stream:
        return orjson.dumps(telling.body(parts, kept.finish, usage))
    writer = telling.writer
    return writer.begin() + writer.parts(parts) + writer.end(kept.finish, usage)


def _message(error: object) -> str:
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)
