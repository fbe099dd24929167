"""An upstream that breaks every rule it is told to: HTTP/1.1 by hand, on a real socket.

A behaviour is an async function of one `Exchange`: what it sends, byte for byte and piece by piece. Behaviours are queued,
one a request; where none is left, a good answer is given. A peer that leaves is noticed at once, and ends the behaviour.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

TEXT = ("Hel", "lo ", "wor", "ld")
DONE = b"data: [DONE]\n\n"


@dataclass
class Exchange:
    """A request and the way to answer it.

    Attributes:
        headers: with lower-case names.
        aborted: set when the peer leaves before the behaviour has ended.
        sent: bytes that the socket has taken.
    """

    target: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    @property
    def fields(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value

    @property
    def streams(self) -> bool:
        return self.fields.get("stream") is True

    async def send(self, data: bytes) -> None:
        """A piece of its own, as far as a socket knows pieces."""
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()
        self.sent += len(data)
        await asyncio.sleep(0)

    async def head(self, status: int = 200, *headers: str) -> None:
        await self.send("\r\n".join([f"HTTP/1.1 {status} Whatever", *headers, "\r\n"]).encode())

    async def stream_head(self, *headers: str) -> None:
        """What follows are chunks."""
        await self.head(200, "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *headers)

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def last_chunk(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def reply(self, status: int, body: bytes, *headers: str) -> None:
        """All at once."""
        fields = ("Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
        if any(header.startswith("Content-Type:") for header in headers):
            fields = fields[1:]
        await self.head(status, *fields)
        await self.send(body)

    async def never(self) -> None:
        """Says nothing more; ends when the peer leaves."""
        await asyncio.Event().wait()

    def cut(self) -> None:
        """RST."""
        self.writer.transport.abort()

    def close(self) -> None:
        """FIN, once all is sent."""
        self.writer.close()


Behaviour = Callable[[Exchange], Awaitable[None]]


class FaultyUpstream:
    """Attributes:
    url: what `base_url` is to be.
    exchanges: one per request, in the order they came.
    usual: what is done when no behaviour is queued.
    """

    def __init__(self) -> None:
        self.url = ""
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.usual: Behaviour = good()
        self._queued: deque[Behaviour] = deque()
        self._came = asyncio.Condition()

    @property
    def calls(self) -> int:
        return len(self.exchanges)

    def then(self, *behaviours: Behaviour) -> None:
        """Queues what the next requests meet."""
        self._queued.extend(behaviours)

    async def asked(self, calls: int = 1, timeout: float = 5.0) -> Exchange:
        """The last of so many requests, once it is there."""
        async with asyncio.timeout(timeout), self._came:
            await self._came.wait_for(lambda: self.calls >= calls)
        return self.exchanges[calls - 1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        began = b""
        try:
            while not writer.is_closing():
                exchange = await _read(began, reader, writer)
                async with self._came:
                    self.exchanges.append(exchange)
                    self._came.notify_all()
                behaviour = self._queued.popleft() if self._queued else self.usual
                began = await _perform(behaviour, exchange, reader)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read(began: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    head = (began + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Exchange(first.split()[1], headers, body, writer)


async def _perform(behaviour: Behaviour, exchange: Exchange, reader: asyncio.StreamReader) -> bytes:
    """The first byte of the next request. Raises ConnectionError when there will be none."""
    performing = asyncio.ensure_future(behaviour(exchange))
    listening = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({performing, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not performing.done() or isinstance(performing.exception(), ConnectionError):
            exchange.aborted.set()
            raise ConnectionError
        performing.result()
        return await listening or _gone()
    finally:
        performing.cancel()
        listening.cancel()
        await asyncio.gather(performing, listening, return_exceptions=True)


def _gone() -> bytes:
    raise ConnectionError


@asynccontextmanager
async def faulty_upstream() -> AsyncIterator[FaultyUpstream]:
    upstream = FaultyUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, backlog=2048)
    host, port = server.sockets[0].getsockname()[:2]
    upstream.url = f"http://{host}:{port}/v1"
    try:
        yield upstream
    finally:
        server.close()
        for exchange in upstream.exchanges:
            exchange.writer.transport.abort()


# What it says.


def chat_event(**delta: Any) -> bytes:
    """An event of a chat stream; `finish_reason` and `index` are the choice's, all else its delta's."""
    reason, index = delta.pop("finish_reason", None), delta.pop("index", 0)
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return _event(
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    )


def usage_event() -> bytes:
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    return _event(
        {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": usage,
        }
    )


def chat_events(text: Sequence[str] = TEXT) -> list[bytes]:
    """A whole answer's, without the usage."""
    said = [chat_event(content=piece) for piece in text]
    return [chat_event(role="assistant", content=""), *said, chat_event(finish_reason="stop"), DONE]


def chat_body(text: Sequence[str] = TEXT) -> bytes:
    message = {"role": "assistant", "content": "".join(text)}
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    ).encode()


def error_body(message: str, **more: Any) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": "some_error", "code": "some_code", **more}}
    ).encode()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


# What it does.


def good(text: Sequence[str] = TEXT, *, delay: float = 0.0, between: float = 0.0) -> Behaviour:
    """A whole answer, after `delay` seconds; of a stream a chunk per event, `between` seconds apart, with usage if asked."""

    async def behaviour(exchange: Exchange) -> None:
        await asyncio.sleep(delay)
        if not exchange.streams:
            await exchange.reply(200, chat_body(text), "x-request-id: req_upstream")
            return
        events = chat_events(text)
        if (exchange.fields.get("stream_options") or {}).get("include_usage"):
            events.insert(-1, usage_event())
        await streamed(*events, between=between)(exchange)

    return behaviour


def streamed(*events: bytes, between: float = 0.0, headers: Sequence[str] = ()) -> Behaviour:
    """These bytes, each a chunk, and the end of the body."""

    async def behaviour(exchange: Exchange) -> None:
        await exchange.stream_head(*headers)
        for event in events:
            await exchange.chunk(event)
            await asyncio.sleep(between)
        await exchange.last_chunk()

    return behaviour


def streamed_then(ending: Callable[[Exchange], Any], *events: bytes) -> Behaviour:
    """These bytes, and then not the end of the body: `Exchange.cut`, `close` or `never`."""

    async def behaviour(exchange: Exchange) -> None:
        await exchange.stream_head()
        for event in events:
            await exchange.chunk(event)
        await asyncio.sleep(0.01)  # so that a cut does not overtake what was sent
        if (waiting := ending(exchange)) is not None:
            await waiting

    return behaviour


def answered(status: int, body: bytes, *headers: str) -> Behaviour:
    return lambda exchange: exchange.reply(status, body, *headers)


def silent(exchange: Exchange) -> Awaitable[None]:
    """No byte, ever."""
    return exchange.never()
