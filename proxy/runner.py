"""aiohttp's runner as production needs it: a client that leaves cancels its handler, every refusal is JSON, and a
request is on record from its first byte to its last.
"""

import logging
import time
from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .controls import REQUEST_ID, new_request_id
from .errors import parser_error_response
from .observe.record import RequestRecord
from .observe.recorder import RECORD, Recorder

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 75.0
# Requests still running after the drain are cut; the rest is tidying up.
SHUTDOWN_SECONDS = 1.0


# The route of what never became a request.
BROKEN = "broken"


def production_runner(app: web.Application, recorder: Recorder) -> web.AppRunner:
    """`recorder` is told when a request's last byte is written; it has heard of its begin from the application."""
    runner = _Runner(
        app,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    runner.recorder = recorder
    return runner


class _Handler(RequestHandler):
    """One connection. Only faults below the application (broken HTTP) reach `handle_error`.

    Attributes:
        first_byte: when the first byte of the request at hand was read (`time.perf_counter` seconds); None between two,
            and of one that was sent before its predecessor was answered.
    """

    __slots__ = ("first_byte", "recorder")

    first_byte: float | None
    recorder: Recorder

    def data_received(self, data: bytes) -> None:
        if self.first_byte is None:
            self.first_byte = time.perf_counter()
        super().data_received(data)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        gone = True  # unless it comes to its end
        try:
            resp, gone = await super().finish_response(request, resp, start_time)
        finally:
            record: RequestRecord | None = request.get(RECORD)
            if record is None:
                identity = resp.headers.get(REQUEST_ID) or new_request_id()
                record = self.recorder.begin(request, identity, BROKEN)
            sent = request.writer.output_size
            self.recorder.end(record, status=resp.status, bytes_out=sent, aborted=gone)
            self.first_byte = None
        return resp, gone

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
        response = parser_error_response(status, message)
        response.headers[REQUEST_ID] = identity
        return response


class _Runner(web.AppRunner):
    __slots__ = ("recorder",)

    recorder: Recorder

    async def _make_server(self) -> web.Server:
        # aiohttp has no public way to choose the connection class; its Server makes one per connection when
        # called.
        server = await super()._make_server()
        server.__class__ = _Server
        assert isinstance(server, _Server)
        server.recorder = self.recorder
        return server


class _Server(web.Server):
    recorder: Recorder

    def __call__(self) -> RequestHandler:
        handler = _Handler(self, loop=self._loop, **self._kwargs)
        handler.first_byte, handler.recorder = None, self.recorder
        return handler
