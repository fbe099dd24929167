"""aiohttp's runner as production needs it: a client that leaves cancels its handler, and every refusal is
JSON.
"""

import logging
from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from .errors import parser_error_response

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 75.0
# Requests still running after the drain are cut; the rest is tidying up.
SHUTDOWN_SECONDS = 1.0


def production_runner(app: web.Application, *, access_log: bool = False) -> web.AppRunner:
    return _Runner(
        app,
        handler_cancellation=True,
        access_log=logging.getLogger("penstock.access") if access_log else None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )


class _Handler(RequestHandler):
    """One connection. Only faults below the application (broken HTTP) reach `handle_error`."""

    __slots__ = ()

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
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("a request failed below the application", exc_info=exc)
        return parser_error_response(status, message)


class _Runner(web.AppRunner):
    __slots__ = ()

    async def _make_server(self) -> web.Server:
        # aiohttp has no public way to choose the connection class; its Server makes one per connection when
        # called.
        server = await super()._make_server()
        server.__class__ = _Server
        return server


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)
