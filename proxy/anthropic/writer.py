"""An answer as the events of Anthropic's stream, as bytes.

What stays the same is encoded once; a piece of text then costs one string encoding and a join.
"""

import orjson

from ...errors import PenstockError
from ..answer import Kind, Part
from ..answer_writer import Finish
from ..sse import json_string, one_line
from ..usage import Usage
from .body import SIGNATURE, Head, counts, envelope, new_block, stop
from .errors import error_body

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_END = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_DELTAS: dict[Kind, bytes] = {
    "content": b'"type":"text_delta","text":',
    "reasoning": b'"type":"thinking_delta","thinking":',
    "arguments": b'"type":"input_json_delta","partial_json":',
}


class MessageWriter:
    """An AnswerWriter.

    Args:
        head: what is known before the answer comes.
        request_id: named by an error that breaks the stream off.
        usage: so far, for the first event; None where it is not known yet: that event then counts nothing, and the last
            but one, whose counts are those of the whole, replaces them.
    """

    def __init__(self, head: Head, *, request_id: str, usage: Usage | None = None) -> None:
        self._head = head
        self._request_id = request_id
        self._usage = usage or Usage(0, 0, 0)
        self._index = -1
        # The kind of the parts that belong to the open block.
        self._open: Kind | None = None
        self._delta = b""

    def begin(self) -> bytes:
        message: dict[str, object] = {
            **envelope(self._head),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**counts(self._usage), "service_tier": "standard"},
        }
        return _event("message_start", {"type": "message_start", "message": message}) + _PING

    def parts(self, parts: list[Part]) -> bytes:
        return b"".join([self._part(part) for part in parts])

    def end(self, finish: Finish, usage: Usage) -> bytes:
        last: dict[str, object] = {
            "type": "message_delta",
            "delta": stop(self._head, finish, usage),
            "usage": counts(usage),
        }
        return self._close() + _event("message_delta", last) + _END

    def failed(self, error: PenstockError) -> bytes:
        body = error_body(error.status, error.message, self._request_id, param=error.param)
        return b"event: error\ndata: " + one_line(body) + b"\n\n"

    def _part(self, part: Part) -> bytes:
        if part.kind == self._open:
            if part.kind == "reasoning" and not self._head.shows_thoughts:
                return _PING  # so that a long silence is not taken for a dead connection
            return self._delta + json_string(part.text) + b"}}\n\n"
        opened = self._close() + self._begin(part)
        return opened if part.kind == "name" else opened + self._part(part)

    def _begin(self, part: Part) -> bytes:
        self._index += 1
        self._open = "arguments" if part.kind == "name" else part.kind
        self._delta = self._delta_of(_DELTAS[self._open])
        block: dict[str, object] = {
            "type": "content_block_start",
            "index": self._index,
            "content_block": new_block(part),
        }
        return _event("content_block_start", block)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open == "reasoning":
            signed = (
                self._delta_of(b'"type":"signature_delta","signature":') + json_string(SIGNATURE) + b"}}\n\n"
            )
        self._open = None
        return signed + _event("content_block_stop", {"type": "content_block_stop", "index": self._index})

    def _delta_of(self, opening: bytes) -> bytes:
        index = str(self._index).encode()
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":'
        return head + index + b',"delta":{' + opening


def _event(name: str, data: dict[str, object]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + one_line(orjson.dumps(data)) + b"\n\n"
