"""One HTTP/1.1 connection to an upstream: one question at a time, and its reply at the reader's pace.

The parser is aiohttp's, in C, and so is the reader of bodies, which holds the connection back while nobody reads. Its
session is not used: a request through it cost 60 µs of CPU more than through this (proxy/upstreams as a whole, measured),
for what an upstream has no use for: cookies, redirects, traces, headers merged and checked anew each time.

Knows no time limit but what its user sets on `patience`, and neither DNS nor TLS.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser, RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpParser
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from ..patience import Patience

# A body is read ahead of its reader up to twice so much.
AHEAD_BYTES = 64 << 10
MAX_LINE_BYTES = 16 << 10
MAX_HEADERS = 128


class HttpError(Exception):
    """The other side did not do what HTTP asks of it."""


class NotConnected(HttpError):
    """There is no connection, or it ended before a byte of the reply came."""


class ConnectTimedOut(NotConnected):
    """None was made in time."""


class BrokenReply(HttpError):
    """It is no HTTP, or ended in the middle."""


class Response:
    """A reply whose head has come. To be released once its body has been read, or closed.

    Attributes:
        headers: names in any case.
        content: the body; raises HttpError where that breaks off.
        patience: for waits on `content`.
    """

    __slots__ = ("_connection", "_is_done", "_message", "content", "patience")

    def __init__(self, connection: "Connection", message: RawResponseMessage, content: StreamReader) -> None:
        self._connection, self._message = connection, message
        self._is_done = False
        self.content = content
        self.patience = connection.patience

    @property
    def status(self) -> int:
        return self._message.code

    @property
    def reason(self) -> str:
        return self._message.reason or ""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        return self._message.headers

    @property
    def content_type(self) -> str:
        """Without parameters; empty where it is not told."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def release(self) -> None:
        """The connection may take another question."""
        if not self._is_done:
            self._is_done = True
            self._connection.finish()

    def close(self) -> None:
        """What has not come yet is not wanted: the connection ends, which tells the upstream to stop."""
        if not self._is_done:
            self._is_done = True
            self._connection.abort()


class Connection(BaseProtocol):
    """Of one event loop, made by `create_connection`.

    Args:
        idle: called when it may take another question.
        lost: called when it can take none any more.

    Attributes:
        patience: for waits on this connection; its timer goes on from one question to the next.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        idle: "Callable[[Connection], None]",
        lost: "Callable[[Connection], None]",
    ) -> None:
        super().__init__(loop)
        self.patience = Patience(0.0)
        self._on_idle, self._on_lost = idle, lost
        self._answering: asyncio.Future[Response] | None = None
        self._content: StreamReader | None = None
        self._has_answered = False
        self._is_last = False  # no other question may follow

    async def ask(self, head: bytes, body: bytes) -> Response:
        """Sends a request, and waits for the head of its reply. Raises NotConnected or BrokenReply."""
        if self.transport is None:
            raise NotConnected("the connection was closed")
        self._parser = HttpResponseParser(
            self,
            self._loop,
            AHEAD_BYTES,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            payload_exception=BrokenReply,
            read_until_eof=True,
            auto_decompress=True,  # some do pack what was to be sent plainly
        )
        self._content, self._has_answered = None, False
        self._answering = self._loop.create_future()
        # Both are in memory, and stay so until they are sent: there is nothing to gain by waiting.
        self.transport.writelines((head, body))
        try:
            return await self._answering
        except BaseException:
            self.abort()
            raise
        finally:
            self._answering = None

    def finish(self) -> None:
        """The body has been read: another question may come, if all of the reply is here and nothing else."""
        parser, self._parser = self._parser, None
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        clean = (
            not self._is_last
            and self._content is not None
            and self._content.at_eof()
            and parser is not None
            and _is_at_an_end(parser)
            and transport.get_write_buffer_size() == 0  # it was answered before it was all sent
        )
        if clean:
            self._on_idle(self)
        else:
            self.abort()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.abort()  # nobody has asked for it
            return
        self._has_answered = True
        try:
            messages, switched, _ = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._break(BrokenReply(f"it sent what is no HTTP ({_first_line(error.message)})"))
            return
        if switched:
            self._is_last = True
        for message, content in messages:
            if 100 <= message.code < 200 and not switched:
                continue  # the reply is still to come
            answering = self._answering
            if answering is None or answering.done():
                self._is_last = True  # a second reply to one question
                return
            self._is_last = self._is_last or message.should_close
            self._content = content
            answering.set_result(Response(self, message, content))

    def resume_reading(self, *args: bool, **names: bool) -> None:  # aiohttp 3.13 knows none
        # Called with every piece that is read, and seldom needed.
        if self._reading_paused:
            super().resume_reading(*args, **names)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.patience.close()
        self._on_lost(self)
        why = "the connection was closed" if exc is None else _first_line(str(exc) or type(exc).__name__)
        if exc is None and self._content is not None and self._parser is not None:
            with suppress(HttpProcessingError):
                self._parser.feed_eof()  # the end of a body that has no other
        self._break(BrokenReply(why) if self._has_answered else NotConnected(why))

    def _break(self, error: HttpError) -> None:
        self._parser = None
        if self._answering is not None and not self._answering.done():
            self._answering.set_exception(error)
        elif self._content is not None and not self._content.is_eof():
            self._content.set_exception(error)
        self.abort()


def _is_at_an_end(parser: HttpParser[RawResponseMessage]) -> bool:
    """Not in the beginning of another reply, which nobody has asked for."""
    try:
        return parser.feed_eof() is None
    except HttpProcessingError:
        return False


def _first_line(text: str) -> str:
    return text.partition("\n")[0].rstrip(":")
