"""A client that is cheap enough to share a core with the upstream: raw HTTP/1.1 over kept connections, nothing parsed twice.

`run_load(...)` sends requests one after another on each of its connections for some seconds, and says what it saw.
"""

import asyncio
import itertools
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson
from mock_upstream import MODEL

_numbers = itertools.count()
PROMPT = (
    "A user of a command line asks how to find every file below a folder that was changed within the last day, to "
    "leave out what version control ignores, and to sort the rest by size. Answer with one command and one sentence. "
) * 2
STALLED_SECONDS = 60.0
EVENT, END = b"data: {", b"\r\n0\r\n\r\n"
"""What an event begins with, and what a chunked body ends with."""


class LoadFailed(Exception):
    """The proxy refused a request, cut it, or was silent; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to send requests, and how.

    Attributes:
        acknowledge: the UDP port of the upstream, which is told of every chunk that has arrived.
        headers: of each request, beside those that HTTP needs.
    """

    port: int
    acknowledge: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Seen:
    """What came of one load.

    Attributes:
        answered: requests whose answers came whole; all that were begun, or LoadFailed is raised.
        first: seconds from sending to the first event of a stream, or to the whole answer.
    """

    answered: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)


def run_load(
    target: Target, *, connections: int, seconds: float, chunks: int = 0, pause: float = 0.0
) -> Seen:
    """Keeps `connections` requests under way for `seconds`, then lets them end.

    Args:
        chunks: of each stream; 0 asks for answers in one piece.
        pause: seconds between an answer and the next request, and before a chunk's arrival is acknowledged.

    Raises LoadFailed.
    """
    import uvloop

    return uvloop.run(_run_load(target, connections, seconds, chunks, pause))


async def _run_load(target: Target, connections: int, seconds: float, chunks: int, pause: float) -> Seen:
    loop, seen = asyncio.get_running_loop(), Seen()
    acknowledge = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    acknowledge.connect(("127.0.0.1", target.acknowledge))
    begun = time.perf_counter()
    lines = [_Line(target, chunks, pause, begun + seconds, seen, acknowledge) for _ in range(connections)]
    try:
        for line in lines:
            await loop.create_connection(lambda line=line: line, "127.0.0.1", target.port)
        ends = asyncio.gather(*(line.ended for line in lines))
        await asyncio.wait_for(ends, seconds + STALLED_SECONDS)
    except TimeoutError as error:
        raise LoadFailed(f"an answer was still missing after {STALLED_SECONDS:.0f} s") from error
    except OSError as error:
        raise LoadFailed(str(error)) from error
    finally:
        for line in lines:
            line.close()
        acknowledge.close()
    seen.seconds = time.perf_counter() - begun
    return seen


class _Line(asyncio.Protocol):
    """One kept connection: the next request is sent when the answer before has ended."""

    def __init__(
        self,
        target: Target,
        chunks: int,
        pause: float,
        until: float,
        seen: Seen,
        acknowledge: socket.socket,
    ) -> None:
        self._target, self._chunks, self._pause = target, chunks, pause
        self._until, self._seen, self._acknowledge = until, seen, acknowledge
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        lines = {
            "Host": f"127.0.0.1:{target.port}",
            "Content-Type": "application/json",
            **target.headers,
        }
        self._head = "POST /v1/chat/completions HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        number = next(_numbers)
        self._number = b"%d" % number
        fields = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"{number} {PROMPT}"}],
            "temperature": 0,
            "max_tokens": self._chunks or 64,
        }
        body = orjson.dumps(fields | ({"stream": True} if self._chunks else {}))
        self._received, self._events, self._tail = b"", 0, b""
        self._sent = time.perf_counter()
        self._transport.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def data_received(self, data: bytes) -> None:
        if not self._received and not data.startswith(b"HTTP/1.1 200"):
            self._fail(f"it answered {data[:300]!r}")
        elif self._chunks:
            self._received = data
            self._stream_received(data)
        else:
            self._received += data
            if _is_whole(self._received):
                self._seen.first.append(time.perf_counter() - self._sent)
                self._answered(b'"content"' in self._received)

    def _stream_received(self, data: bytes) -> None:
        arrived = (self._tail + data).count(EVENT)
        if arrived and not self._events:
            self._seen.first.append(time.perf_counter() - self._sent)
        # A proxy may add events of its own after the last text, but none before it.
        for _ in range(min(arrived, self._chunks - self._events)):
            self._after_pause(self._acknowledge.send, self._number)
        self._events += arrived
        ending = self._tail + data
        self._tail = ending[1 - len(EVENT) :]
        if ending.endswith(END):
            self._answered(self._events >= self._chunks)

    def _answered(self, whole: bool) -> None:
        if not whole:
            self._fail(f"its answer ended with {self._received[-300:]!r}")
            return
        self._seen.answered += 1
        if time.perf_counter() < self._until:
            self._after_pause(self._send)
        else:
            self.close()
            if not self.ended.done():
                self.ended.set_result(None)

    def _after_pause(self, act: Callable[..., object], *arguments: object) -> None:
        if self._pause:
            self._loop.call_later(self._pause, act, *arguments)
        else:
            act(*arguments)

    def connection_lost(self, _error: Exception | None) -> None:
        self._fail("it closed the connection")

    def _fail(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(LoadFailed(why))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _is_whole(received: bytes) -> bool:
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return False
    _, stated, rest = head.lower().partition(b"\r\ncontent-length:")
    return len(body) >= int(rest.partition(b"\r\n")[0]) if stated else body.endswith(END)
