"""Anthropic's API as upstreams speak it."""

from typing import TYPE_CHECKING

import orjson

from ...cache import CachedChoice, CachedCompletion
from ...errors import PenstockError
from ..answer import Part
from ..anthropic.body import Head, message_body
from ..anthropic.errors import error_body
from ..anthropic.from_chat import from_chat
from ..anthropic.reader import BrokenAnswerError, MessageReader
from ..anthropic.to_chat import BETA, VERSION
from ..anthropic.writer import MessageWriter
from ..routing.target import RemoteTarget
from ..sse import one_line
from .reading import MAX_KEPT_CHARACTERS, BodyReading, ForwardedReading, TokenCounts, decoded
from .remote_api import RemoteApi, Spoken

if TYPE_CHECKING:
    from ..answering import Asked

# Anthropic's API demands a limit, OpenAI's does not.
DEFAULT_MAX_TOKENS = 4096


class MessagesReading(ForwardedReading):
    """Of /messages. Answers with thoughts are not kept: their signatures are not read."""

    def __init__(self, request_id: str, *, keep: bool) -> None:
        self.tokens: TokenCounts | None = None
        self.finish_reasons: list[str] = []
        self._request_id = request_id
        self._keep = keep
        self._reader = MessageReader()
        self._head: Head | None = None
        self._parts: list[Part] = []
        self._size = 0

    @property
    def finished(self) -> bool:
        return self._reader.finished

    def event(self, data: bytes) -> bool:
        if not data:
            return True
        event = decoded(data)
        if event.get("type") == "message_start":
            message = event.get("message") or {}
            self._head = Head(str(message.get("id")), str(message.get("model")))
        try:
            self._gather(self._reader.read(event))
        except BrokenAnswerError:
            if event.get("type") == "error":
                raise
            self._keep = False  # blocks that are not understood here may be what the client has asked for
        if self._reader.finished:
            self._settle()
        return True

    def body(self, body: bytes) -> None:
        message = decoded(body)
        self._head = Head(str(message.get("id")), str(message.get("model")))
        try:
            self._gather(self._reader.whole(message))
        except BrokenAnswerError:
            self._keep = False
        self._settle()

    def failed(self, error: PenstockError) -> bytes:
        return messages_failed(error, self._request_id)

    def completion(self, *, seconds: float) -> CachedCompletion | None:
        finish, usage = self._reader.finish, self._reader.usage
        if not self._keep or self._head is None or finish is None or usage is None:
            return None
        if finish.reason not in ("stop", "tool_calls"):
            return None
        wire = orjson.dumps(message_body(self._head, self._parts, finish, usage))
        text = "".join(part.text for part in self._parts if part.kind == "content")
        return CachedCompletion(
            choices=[CachedChoice(text, [], finish.reason, None, None, wire)],
            prompt_tokens=usage.prompt_tokens,
            engine_seconds=seconds,
        )

    def _gather(self, parts: list[Part]) -> None:
        if self._keep:
            self._parts += parts
            self._size += sum(len(part.text) + 16 for part in parts)
            self._keep = self._size <= MAX_KEPT_CHARACTERS and all(part.kind != "reasoning" for part in parts)

    def _settle(self) -> None:
        if self._reader.finish is not None:
            self.finish_reasons = [self._reader.finish.reason]
        if (usage := self._reader.usage) is not None:
            self.tokens = TokenCounts(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


def messages_failed(error: PenstockError, request_id: str) -> bytes:
    body = error_body(error.status, error.message, request_id, param=error.param)
    return b"event: error\ndata: " + one_line(body) + b"\n\n"


def _replay(asked: "Asked", _target: RemoteTarget, wire: bytes) -> bytes:
    if not asked.stream:
        return wire
    message = decoded(wire)
    reader = MessageReader()
    parts = reader.whole(message)
    assert reader.finish is not None and reader.usage is not None, "it was kept"
    writer = MessageWriter(
        Head(message["id"], message["model"]), request_id=asked.caller.request_id, usage=reader.usage
    )
    return writer.begin() + writer.parts(parts) + writer.end(reader.finish, reader.usage)


MESSAGES_API = RemoteApi(
    name="messages",
    path="/messages",
    reading=lambda asked, _target, keep, _own_usage: MessagesReading(asked.caller.request_id, keep=keep),
    replay=_replay,
    headers=(VERSION, BETA),
)
COUNT_TOKENS_API = RemoteApi(
    name="count_tokens",
    path="/messages/count_tokens",
    reading=lambda *_: BodyReading(TokenCounts(0, 0, 0)),  # counting is free
    replay=lambda _asked, _target, wire: wire,
    headers=(VERSION, BETA),
)
MESSAGES_SPOKEN = Spoken(
    name="messages",
    path="/messages",
    reader=MessageReader,
    from_chat=lambda fields: from_chat(fields, default_max_tokens=DEFAULT_MAX_TOKENS),
)
