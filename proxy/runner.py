"""aiohttp's runner as production needs it: a client that leaves cancels its handler, every refusal is JSON, a request is on
record from its first byte to its last, and neither a slow client nor a crowd of them takes the server from the others.
"""

import asyncio
import logging
import math
import time
from contextlib import suppress
from http import HTTPStatus
from typing import cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .controls import REQUEST_ID, new_request_id
from .errors import (
    MAX_HEADERS,
    MAX_LINE_BYTES,
    SERVER,
    error_body,
    http_error_response,
    parser_error_response,
)
from .observe.record import RequestRecord
from .observe.recorder import RECORD, Recorder
from .open_files import connection_limit

log = logging.getLogger(__name__)

# How long a kept connection may lie idle. Longer than most balancers keep theirs (60 s), so that they close first.
KEEPALIVE_SECONDS = 75.0
# From the first byte of a request to the end of its headers. Bodies have their own limit (request_body.py).
HEAD_SECONDS = 20.0
# What a refused client still sends is read for so long, and thrown away: one that is cut while it sends sees a broken
# connection instead of the refusal.
LINGERING_SECONDS = 2.0
# Smaller answers fit the buffers of a socket, so that nobody waits for their readers.
LARGE_BODY = 32 << 10
WRITE_SECONDS = 30.0
LOOK_SECONDS = 0.05
# Requests still running after the drain are cut; the rest is tidying up.
SHUTDOWN_SECONDS = 1.0

_FULL_BODY = error_body(
    "The server has as many connections open as it may (ulimit -n); try again.",
    "server_error",
    code="too_many_connections",
)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_FULL_BODY), _FULL_BODY)
)


# The route of what never became a request.
BROKEN = "broken"


def production_runner(
    app: web.Application, recorder: Recorder, *, write_timeout: float = WRITE_SECONDS
) -> web.AppRunner:
    """`recorder` is told when a request's last byte is written; it has heard of its begin from the application.
    `write_timeout`: seconds in which a client must have read a large answer."""
    runner = _Runner(
        app,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
        lingering_time=LINGERING_SECONDS,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        max_headers=MAX_HEADERS,
        auto_decompress=False,
    )
    runner.recorder = recorder
    runner.write_timeout = write_timeout
    return runner


class _Handler(RequestHandler):
    """One connection. Only faults below the application (broken HTTP) reach `handle_error`.

    Attributes:
        first_byte: when the first byte of the request at hand was read (`time.perf_counter` seconds); None between two,
            and of one that was sent before its predecessor was answered.
    """

    __slots__ = ("_counted", "_head_due", "_lost", "first_byte", "recorder", "write_timeout")

    first_byte: float | None
    recorder: Recorder
    write_timeout: float

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._manager
        assert isinstance(server, _Server)
        self._head_due: asyncio.TimerHandle | None = None
        self._lost: asyncio.Event | None = None  # of one whose request could not be read, once that was said
        self._counted = server.num_connections < server.max_connections
        if not self._counted:
            answering = cast(asyncio.Transport, transport)  # uvloop's is no subclass
            answering.write(_FULL)
            answering.close()
            return
        server.num_connections += 1
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
        if self._lost is not None:
            self._lost.set()
        server = self._manager
        if self._counted and isinstance(server, _Server):
            self._counted = False
            server.num_connections -= 1
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._counted or self._lost is not None:
            return
        if self.first_byte is None:
            self.first_byte = time.perf_counter()
        super().data_received(data)
        # Nobody is being answered, and what came is no whole head yet: it is being waited for.
        if self._waiter is not None and not self._messages:
            if self._head_due is None:
                self._head_due = self._loop.call_later(HEAD_SECONDS, self.force_close)
        elif self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError(
                "The response has begun; closing is the only way left to say that it failed."
            )
        identity = new_request_id()
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("%s failed below the application", identity, exc_info=exc)
        response = parser_error_response(status, exc, message)
        response.headers[REQUEST_ID] = identity
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        # Raised around the middleware, not inside it: an Expect header that nobody can meet.
        if isinstance(resp, web.HTTPException):
            resp = http_error_response(request, resp)
            resp.headers.update({"Server": SERVER, REQUEST_ID: new_request_id()})
        broken = False
        gone = True  # unless it comes to its end
        try:
            if (resp.content_length or 0) <= LARGE_BODY:
                resp, gone = await super().finish_response(request, resp, start_time)
            else:
                # Begins when the writing pauses, or has ended.
                reading = asyncio.create_task(self._is_read(resp.headers.get(REQUEST_ID)))
                try:
                    resp, gone = await super().finish_response(request, resp, start_time)
                    gone = not await reading or gone
                finally:
                    reading.cancel()
        finally:
            record: RequestRecord | None = request.get(RECORD)
            if record is None:
                identity = resp.headers.get(REQUEST_ID) or new_request_id()
                record = self.recorder.begin(request, identity, BROKEN)
                broken = True
            sent = request.writer.output_size
            self.recorder.end(record, status=resp.status, bytes_out=sent, aborted=gone)
            self.first_byte = None
        if broken and not gone:
            await self._hear_out()
        return resp, gone

    async def _hear_out(self) -> None:
        """aiohttp does so with bodies only. A connection that is closed on bytes that nobody read is reset, and the answer
        goes with it."""
        if self.transport is None or self.transport.is_closing():
            return
        self._lost = asyncio.Event()
        self.transport.write_eof()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), LINGERING_SECONDS)

    async def _is_read(self, identity: str | None) -> bool:
        """Until the client has taken a large body; False when it was cut off for not reading on.

        aiohttp would wait for ever. (Streams see to it themselves.)
        """
        transport = self.transport
        left, since = math.inf, time.perf_counter()
        while transport is not None and not transport.is_closing():
            size = transport.get_write_buffer_size()
            if size <= LARGE_BODY:
                return True
            if size < left:
                left, since = size, time.perf_counter()
            elif time.perf_counter() - since > self.write_timeout:
                log.warning("%s: the client has not read for %g s; closing.", identity, self.write_timeout)
                transport.abort()
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return False


class _Runner(web.AppRunner):
    __slots__ = ("recorder", "write_timeout")

    recorder: Recorder
    write_timeout: float

    async def _make_server(self) -> web.Server:
        # aiohttp has no public way to choose the connection class; its Server makes one per connection when
        # called.
        server = await super()._make_server()
        server.__class__ = _Server
        assert isinstance(server, _Server)
        server.num_connections = 0
        server.max_connections = connection_limit()
        server.recorder = self.recorder
        server.write_timeout = self.write_timeout
        return server


class _Server(web.Server):
    num_connections: int
    max_connections: int
    recorder: Recorder
    write_timeout: float

    def __call__(self) -> RequestHandler:
        handler = _Handler(self, loop=self._loop, **self._kwargs)
        handler.first_byte, handler.recorder = None, self.recorder
        handler.write_timeout = self.write_timeout
        return handler
