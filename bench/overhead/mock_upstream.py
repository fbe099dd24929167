"""An OpenAI-compatible upstream that costs next to nothing: PORT.

A POST is answered at once: with one small completion, or, where `stream` is true, with `max_tokens` chunks of text. The
prompt begins with the number of the stream. Each chunk but the first waits for a datagram with that number, sent to the same
port over UDP by the client when the chunk before has arrived: so each passes the proxy by itself, however slow that is.
A proxy that keeps chunks back would stand still; it is given the next one after a while, and those are counted: GET /pushed.
"""

import asyncio
import sys

import orjson
import uvloop

MODEL = "mock-model"
WORDS = "The gate opens and the water runs through the pipe to the turbine below. " * 4
PUSH_AFTER_SECONDS = 0.25
_HEAD = {"id": "chatcmpl-mock", "created": 1_700_000_000, "model": MODEL}
_COMPLETION = {
    **_HEAD,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": WORDS},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 60, "completion_tokens": 60, "total_tokens": 120},
}
_MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "mock"}]}


def _response(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(**changed: object) -> bytes:
    return b"data: " + orjson.dumps({**_HEAD, "object": "chat.completion.chunk", **changed}) + b"\n\n"


def _choices(delta: dict[str, str], finish_reason: str | None = None) -> list[dict[str, object]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]


COMPLETION, MODELS = _response(orjson.dumps(_COMPLETION)), _response(orjson.dumps(_MODELS))
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
FIRST = _http_chunk(_event(choices=_choices({"role": "assistant", "content": "The"})))
NEXT = _http_chunk(_event(choices=_choices({"content": " water"})))
LAST = _event(choices=_choices({}, "stop"))
USAGE = _event(choices=[], usage=_COMPLETION["usage"])
DONE = b"data: [DONE]\n\n"


class Stream:
    """One answer in the making: `chunks` of text, then what ends it."""

    def __init__(self, transport: asyncio.Transport, chunks: int, *, with_usage: bool) -> None:
        self._transport, self._left = transport, chunks - 1
        self._end = _http_chunk(LAST + (USAGE if with_usage else b"") + DONE) + b"0\r\n\r\n"
        self.moved = True
        transport.write(STREAM_HEAD + FIRST)

    def go_on(self) -> bool:
        """Sends the next piece; says whether there will be more: not if the proxy has left."""
        if self._transport.is_closing():
            return False
        self.moved = True
        self._left -= 1
        self._transport.write(NEXT if self._left >= 0 else self._end)
        return self._left >= 0


class Streams(asyncio.DatagramProtocol):
    """All unfinished answers, by number, and the datagrams that move them."""

    def __init__(self) -> None:
        self._streams: dict[bytes, Stream] = {}
        self.pushed = 0

    def add(self, number: bytes, stream: Stream) -> None:
        self._streams[number] = stream

    def datagram_received(self, number: bytes, _sender: object) -> None:
        stream = self._streams.get(number)
        if stream is not None and not stream.go_on():
            del self._streams[number]

    async def push_what_stands_still(self) -> None:
        while True:
            await asyncio.sleep(PUSH_AFTER_SECONDS)
            for number, stream in list(self._streams.items()):
                if stream.moved:
                    stream.moved = False
                else:
                    self.pushed += 1
                    self.datagram_received(number, None)


class Connection(asyncio.Protocol):
    def __init__(self, streams: Streams) -> None:
        self._streams, self._received = streams, b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            length = _content_length(head.lower())
            if len(rest) < length:
                return
            self._received = rest[length:]
            self._answer(head, rest[:length])

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST"):
            counted = head.startswith(b"GET /pushed")
            self._transport.write(_response(b"%d" % self._streams.pushed) if counted else MODELS)
            return
        asked = orjson.loads(body)
        if not asked.get("stream"):
            self._transport.write(COMPLETION)
            return
        number = asked["messages"][0]["content"].split(" ", 1)[0].encode()
        options = asked.get("stream_options") or {}
        stream = Stream(self._transport, asked["max_tokens"], with_usage=bool(options.get("include_usage")))
        self._streams.add(number, stream)


def _content_length(head: bytes) -> int:
    if b"\r\ntransfer-encoding:" in head:
        raise ValueError("This upstream reads bodies of a stated length only.")
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


async def main(port: int) -> None:
    loop, streams = asyncio.get_running_loop(), Streams()
    await loop.create_datagram_endpoint(lambda: streams, local_addr=("127.0.0.1", port))
    server = await loop.create_server(lambda: Connection(streams), "127.0.0.1", port, backlog=1024)
    async with server:
        await streams.push_what_stands_still()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
