"""Server-sent events as bytes: framing, and the chunks of both OpenAI streams.

A stream's constant parts (id, model, time) are encoded once; a token then costs one string encoding and a
join.
"""

from collections.abc import Callable

import orjson

from ..errors import PenstockError
from ..scheduler.outputs import Chunk
from .errors import body_of
from .usage import Usage

DONE = b"data: [DONE]\n\n"
_LINE_ENDS = [(char.encode(), f"\\u{ord(char):04x}".encode()) for char in "\x85\u2028\u2029"]


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class StreamFormat:
    """One response's stream.

    Args:
        head: the constant fields of every chunk, as a dict.
        opening: the JSON of a choice between its index and its text.
        closing: what ends that text's object.
        preamble: the choice sent once per index before its first text, None for none.
        logprobs: a chunk's log-probabilities as JSON; None when the request wants none.
        include_usage: every chunk carries `usage: null`, and one more at the end the figures.
    """

    def __init__(
        self,
        head: dict[str, object],
        *,
        opening: bytes,
        closing: bytes,
        preamble: bytes | None,
        logprobs: Callable[[Chunk], bytes] | None,
        include_usage: bool,
    ) -> None:
        self._head = orjson.dumps(head)[:-1]
        self._opening = opening
        self._closing = closing
        self._preamble = preamble
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._plain_tail = closing + b',"logprobs":null,"finish_reason":null}' + self._tail
        self._prefixes: dict[int, bytes] = {}

    def chunks(self, batch: list[Chunk]) -> bytes:
        """The events of everything one engine step delivered; empty when there is nothing to show yet."""
        return b"".join([self._chunk(chunk) for chunk in batch])

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        figures = orjson.dumps(usage.as_dict())
        return b"data: " + self._head + b',"choices":[],"usage":' + figures + b"}\n\n" + DONE

    def failed(self, error: PenstockError) -> bytes:
        return event(body_of(error))

    def _chunk(self, chunk: Chunk) -> bytes:
        prefix = self._prefixes.get(chunk.index)
        if prefix is None:
            return self._begin(chunk.index) + self._chunk(chunk)
        if chunk.finish_reason is None:
            if self._logprobs is None or not chunk.logprobs:
                return prefix + json_string(chunk.text) + self._plain_tail if chunk.text else b""
            reason = b"null"
        else:
            reason = b'"' + chunk.finish_reason.encode() + b'"'
        logprobs = b"null" if self._logprobs is None else self._logprobs(chunk)
        return b"".join(
            (
                prefix,
                json_string(chunk.text),
                self._closing,
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                reason,
                b"}",
                self._tail,
            )
        )

    def _begin(self, index: int) -> bytes:
        choice = b"data: " + self._head + b',"choices":[{"index":' + str(index).encode()
        self._prefixes[index] = choice + self._opening
        if self._preamble is None:
            return b""
        return choice + self._preamble + b',"logprobs":null,"finish_reason":null}' + self._tail


def json_string(text: str) -> bytes:
    """The text as JSON that no reader of events takes for several lines."""
    data = orjson.dumps(text)
    return data if text.isascii() else one_line(data)


def one_line(data: bytes) -> bytes:
    """JSON on one line for every reader: many split at what Unicode calls line ends, not only at \\n."""
    for char, escape in _LINE_ENDS:
        data = data.replace(char, escape)
    return data


def chat_format(
    head: dict[str, object], *, logprobs: Callable[[Chunk], bytes] | None, include_usage: bool
) -> StreamFormat:
    return StreamFormat(
        {**head, "object": "chat.completion.chunk"},
        opening=b',"delta":{"content":',
        closing=b"}",
        preamble=b',"delta":{"role":"assistant","content":""}',
        logprobs=logprobs,
        include_usage=include_usage,
    )


def completion_format(
    head: dict[str, object], *, logprobs: Callable[[Chunk], bytes] | None, include_usage: bool
) -> StreamFormat:
    return StreamFormat(
        {**head, "object": "text_completion"},
        opening=b',"text":',
        closing=b"",
        preamble=None,
        logprobs=logprobs,
        include_usage=include_usage,
    )
