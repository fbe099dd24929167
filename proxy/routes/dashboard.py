"""GET /dashboard, /dashboard/events and /dashboard/requests/{id}: the page, its figures, what became of its own requests.

They are the operator's. On the admin listener they stand behind its authorisation, and tell of tenants; on the server's own
they answer this machine alone, as long as the server has no keys, and name no tenant.
"""

import ipaddress
from contextlib import aclosing

from aiohttp import web

from ... import __version__
from ...errors import NotFoundError
from ..context import Context
from ..dashboard.live import KEPT_POINTS, Live, event
from ..dashboard.lookout import Lookout
from ..dashboard.page import page
from ..edge import begin
from ..json_reply import json_response
from ..observe.access_log import fields_of
from ..patience import Patience

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
# A proxy's on the way here, whose client may be anywhere.
_FORWARDED = ("Forwarded", "Via", "X-Forwarded-For", "X-Real-IP")
# What the page is told of its request, of a line in the access log.
_TOLD = (
    "cache",
    "model",
    "upstream",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "ttft_ms",
    "duration_ms",
    "saved_ms",
    "cost",
    "saved_cost",
)


class Dashboard:
    """`for_operator`: whoever asks has shown to be that."""

    def __init__(self, context: Context, *, for_operator: bool) -> None:
        self._context = context
        self._for_operator = for_operator
        lookout = Lookout(
            context.metrics.families,
            lambda: context.router.learned,
            context.tenants.totals,
            shows_tenants=for_operator,
        )
        self._live = Live(lookout.look, lambda: context.edge.draining or not self._may_be_seen)

    async def page(self, request: web.Request) -> web.Response:
        """It tells nothing; a link on another site may lead to it."""
        self._check(request, from_anywhere=True)
        found = page()
        return web.Response(body=found.body, headers=found.headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        hello = {
            "version": __version__,
            "models": self._context.router.names,
            "needs_key": not self._context.tenants.is_open,
            "for_operator": self._for_operator,
            "points": KEPT_POINTS,
        }
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        await begin(request, response)
        await response.write(event("hello", hello))
        patience = Patience(self._context.settings.write_timeout)
        try:
            async with aclosing(self._live.events()) as events:
                async for sent in events:
                    with patience:
                        await response.write(sent)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the client stopped reading") from None
        finally:
            patience.close()
        return response

    async def asked(self, request: web.Request) -> web.Response:
        """Of this process: with several workers, whoever asks over the connection of the request itself finds it."""
        self._check(request)
        record = self._context.recent.find(request.match_info["id"])
        if record is None:
            raise NotFoundError(
                "Of that request nothing is known here; it may be too old, or another worker's."
            )
        fields = fields_of(record)
        return json_response({name: fields[name] for name in _TOLD})

    @property
    def _may_be_seen(self) -> bool:
        """Keys may be made while somebody watches."""
        return self._for_operator or self._context.tenants.is_open

    def _check(self, request: web.Request, *, from_anywhere: bool = False) -> None:
        """Raises NotFoundError."""
        if self._for_operator:
            return
        own_page = from_anywhere or request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        if not (own_page and self._may_be_seen and _is_from_here(request)):
            raise NotFoundError(
                "The dashboard is the operator's: it is on the admin listener (set admin_port), and here only for this "
                "machine, at localhost, as long as the server has no keys."
            )


DASHBOARD = web.AppKey("dashboard", Dashboard)


async def dashboard_page(request: web.Request) -> web.Response:
    return await request.app[DASHBOARD].page(request)


async def dashboard_events(request: web.Request) -> web.StreamResponse:
    return await request.app[DASHBOARD].events(request)


async def dashboard_request(request: web.Request) -> web.Response:
    return await request.app[DASHBOARD].asked(request)


def host_of(request: web.Request) -> str:
    """As the client names it, without the port, and the brackets of an IPv6 address."""
    host = request.host
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_from_here(request: web.Request) -> bool:
    """By a name of this machine, which no page of another site can have given it."""
    if host_of(request) not in LOCAL_HOSTS or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return request.remote is not None and ipaddress.ip_address(request.remote).is_loopback
    except ValueError:
        return False
