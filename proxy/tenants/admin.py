"""Managing tenants over HTTP, on a listener of its own: JSON in and out, errors as the API's.

    GET    /tenants            GET /tenants/NAME    with what is taken of its limits now
    PUT    /tenants/NAME       makes it, or replaces what it may: {"limits": {"rpm": 60}, "models": ["m"], ...}
    DELETE /tenants/NAME       and ends its keys; its accounts stay
    POST   /tenants/NAME/keys  {"label": "ci"}: a new key, in the only reply that ever shows it
    DELETE /keys/ID            from now on, everywhere
    GET    /usage?tenant=NAME&days=7
    GET    /dashboard          a page for the operator, and what it asks for (routes/dashboard.py)

Without a key it is for this machine only, and never for a page of another site in a browser here: such requests name an
Origin, or a Host that is not this machine. The dashboard itself tells nothing, and is there without a key; it asks for it.
"""

import asyncio
import hmac
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import orjson
from aiohttp import web

from ...errors import AuthenticationError, InvalidRequestError, PenstockError
from ..context import CONTEXT, Context
from ..edge import name_response
from ..errors import error_response, http_error_response, internal_error
from ..json_reply import json_response
from ..observe.recorder import Recorder, record_of
from ..request_body import read_body
from ..routes.chat import chat_completions
from ..routes.dashboard import (
    DASHBOARD,
    LOCAL_HOSTS,
    Dashboard,
    dashboard_events,
    dashboard_page,
    dashboard_request,
    host_of,
)
from ..runner import production_runner
from .api_key import presented_key, raw
from .tenant import Tenant, check_name
from .tenants import TenantStore
from .views import key_view, key_views, tenant_view, usage_view

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 16
DEFAULT_DAYS, MAX_DAYS = 30, 3660
ADMIN_KEY = "x-penstock-admin-key"
PAGE, CHAT = "/dashboard", "/v1/chat/completions"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    label: str = ""


class AdminServer:
    """Around a store and a listening socket; the store is the caller's.

    Args:
        context: of the server that the dashboard shows; None: there is none.
    """

    def __init__(
        self, store: TenantStore, sock: socket.socket, *, key: str | None, context: Context | None = None
    ) -> None:
        self._runner = production_runner(admin_app(store, key=key, context=context), Recorder())
        self._sock = sock

    async def start(self) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, self._sock).start()

    async def close(self) -> None:
        await self._runner.cleanup()


def admin_app(store: TenantStore, *, key: str | None, context: Context | None = None) -> web.Application:
    """`key`: what every request must bring; None: nothing, and it must come from here."""
    routes = _Routes(store)
    app = web.Application(middlewares=[_guard(key)], client_max_size=MAX_BODY_BYTES)
    app.add_routes(
        [
            web.get("/tenants", routes.tenants),
            web.get("/tenants/{name}", routes.tenant),
            web.put("/tenants/{name}", routes.put_tenant),
            web.delete("/tenants/{name}", routes.delete_tenant),
            web.post("/tenants/{name}/keys", routes.create_key),
            web.delete("/keys/{id}", routes.revoke_key),
            web.get("/usage", routes.usage),
        ]
    )
    if context is not None:
        _add_dashboard(app, context)
    return app


def _add_dashboard(app: web.Application, context: Context) -> None:
    """The page, and the one way of the server's own API that it asks: a page may only ask where it came from."""

    async def chat(request: web.Request) -> web.StreamResponse:
        response = await context.edge.middleware(request, chat_completions)
        context.recorder.end(
            record_of(request), status=response.status, bytes_out=request.writer.output_size, aborted=False
        )
        return response

    app[CONTEXT] = context
    app[DASHBOARD] = Dashboard(context, for_operator=True)
    app.add_routes(
        [
            web.get(PAGE, dashboard_page),
            web.get("/dashboard/events", dashboard_events),
            web.get("/dashboard/requests/{id}", dashboard_request),
            web.post(CHAT, chat),
        ]
    )


def _guard(key: str | None) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await _answer(request, handler, key)
        if not response.prepared:
            name_response(request, response)
        return response

    return guard


async def _answer(request: web.Request, handler: Handler, key: str | None) -> web.StreamResponse:
    try:
        _authenticate(request, key)
        return await handler(request)
    except PenstockError as error:
        log.log(error.log_level, "admin %s %s: %s", request.method, request.path, error.message)
        return error_response(request, error)
    except web.HTTPException as error:
        return http_error_response(request, error)
    except ConnectionError:
        raise
    except Exception:
        log.exception("admin %s %s failed", request.method, request.path)
        return error_response(request, internal_error("admin"))


def _authenticate(request: web.Request, key: str | None) -> None:
    """Where a chat needs a tenant's key in the usual place, the operator's is in a header of its own."""
    resource = request.match_info.route.resource
    route = None if resource is None else resource.canonical
    own_origin = f"{request.scheme}://{request.host}"
    if "Origin" in request.headers and (route != CHAT or request.headers["Origin"] != own_origin):
        raise AuthenticationError("Pages in a browser may not manage tenants; use `penstock keys`, or curl.")
    if key is not None:
        presented = request.headers.get(ADMIN_KEY) or (
            "" if route == CHAT else presented_key(request.headers)
        )
        if route != PAGE and not hmac.compare_digest(raw(presented), key.encode()):
            raise AuthenticationError(
                "This needs the admin_key of the settings; send 'Authorization: Bearer KEY'."
            )
    elif host_of(request) not in LOCAL_HOSTS:
        raise AuthenticationError(
            f"The request names the host {request.host!r}; without an admin_key only localhost is answered."
        )


class _Routes:
    """Changes are synced to disk, which takes milliseconds: in a thread, since requests are served on this loop too."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store
        self._directory = store.directory

    async def tenants(self, _request: web.Request) -> web.Response:
        tenants = [tenant_view(self._store, tenant) for tenant in self._directory.tenants()]
        return json_response({"tenants": tenants})

    async def tenant(self, request: web.Request) -> web.Response:
        tenant = self._directory.tenant(request.match_info["name"])
        keys = key_views(self._directory.keys(tenant.name))
        return json_response({**tenant_view(self._store, tenant), "keys": keys})

    async def put_tenant(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        check_name(name)
        given = await _decoded(request, dict[str, Any])
        if given.setdefault("name", name) != name:
            raise InvalidRequestError(
                f"name is {given['name']!r}, and the path says {name!r}; leave it out.", param="name"
            )
        tenant = _converted(given, Tenant)
        made = await asyncio.to_thread(self._directory.put_tenant, tenant)
        return json_response(tenant_view(self._store, tenant), status=201 if made else 200)

    async def delete_tenant(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        ended = await asyncio.to_thread(self._directory.remove_tenant, name)
        return json_response({"name": name, "keys_revoked": ended})

    async def create_key(self, request: web.Request) -> web.Response:
        given = await _decoded(request, NewKey) if request.can_read_body else NewKey()
        name = request.match_info["name"]
        key = await asyncio.to_thread(self._directory.create_key, name, label=given.label)
        return json_response({**key_view(self._directory.key(key.id)), "key": key.text}, status=201)

    async def revoke_key(self, request: web.Request) -> web.Response:
        identity = request.match_info["id"]
        await asyncio.to_thread(self._directory.revoke_key, identity)
        return json_response(key_view(self._directory.key(identity)))

    async def usage(self, request: web.Request) -> web.Response:
        for name in request.query:
            if name not in ("tenant", "days"):
                raise InvalidRequestError(
                    f"Unknown query parameter {name!r}; known are tenant and days.", param=name
                )
        days = request.query.get("days", str(DEFAULT_DAYS))
        if not days.isascii() or not days.isdigit() or not 1 <= int(days[:6]) <= MAX_DAYS:
            raise InvalidRequestError(
                f"days is {days!r}; it must be a whole number between 1 and {MAX_DAYS}.", param="days"
            )
        tenant = request.query.get("tenant")
        usage = await asyncio.to_thread(usage_view, self._store, tenant, int(days))
        return json_response({"days": int(days), "usage": usage})


async def _decoded(request: web.Request, type_: type[T]) -> T:
    try:
        return _converted(orjson.loads(await read_body(request)), type_)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not JSON: {error}.") from error


def _converted(value: Any, type_: type[T]) -> T:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"The body is not as it must be: {error}.") from error
