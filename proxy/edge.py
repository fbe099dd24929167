"""What holds for every request: its id, its record, its tenant, a refusal while draining, errors as
JSON.
"""

import logging
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from ..errors import EngineDeadError, InvalidRequestError, PenstockError
from .anthropic import errors as anthropic
from .cascade.explanation import HEADER as ROUTE
from .controls import REQUEST_ID, request_id
from .errors import SERVER, error_response, http_error_response, internal_error
from .observe.record import RequestRecord
from .observe.recorder import RECORD, Recorder, record_of
from .tenants.tenant import Tenant
from .tenants.tenants import Tenants

log = logging.getLogger(__name__)

CALLER = "penstock_caller"
ADMISSION = "penstock_admission"
# Open without a key: probes and scrapers have none, and the description of the API, the same on every server of this
# version, names no model and no version. Routes as they were matched, not paths as they were written.
OPEN_ROUTES = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"})
CLIENT_GONE = 499

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request."""

    request_id: str
    account: Tenant

    @property
    def tenant(self) -> str:
        """Its name, by which the cache and the engine know it."""
        return self.account.name


class Edge:
    """The one middleware.

    Attributes:
        draining: refuse new work; what runs goes on.
        in_flight: API requests being answered.
    """

    def __init__(self, recorder: Recorder, tenants: Tenants) -> None:
        self.draining = False
        self.in_flight = 0
        self._recorder = recorder
        self._tenants = tenants

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        identity = request_id(request.headers)
        record = self._recorder.begin(request, identity, _route(request))
        self.in_flight += 1
        try:
            response = await self._answer(request, handler, identity)
            if not response.prepared:
                name_response(request, response)
            return response
        except BaseException:
            # What is answered ends with its last byte, which the runner sees; this is answered no more.
            sent = request.writer.output_size
            self._recorder.end(record, status=CLIENT_GONE, bytes_out=sent, aborted=True)
            raise
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, handler: Handler, identity: str) -> web.StreamResponse:
        try:
            if _route(request) not in OPEN_ROUTES:
                caller = request[CALLER] = self._admit(request, identity)
                record_of(request).tenant = caller.tenant
            return await handler(request)
        except PenstockError as error:
            log.log(error.log_level, "%s %s %s: %s", identity, request.method, request.path, error.logged)
            record_of(request).error = error.code or error.type
            return error_response(request, error)
        except web.HTTPException as error:
            return http_error_response(request, error)
        except web.RequestPayloadError as error:
            # Chunks or a compression that are not what they say: the sender's fault.
            unreadable = InvalidRequestError(f"The body cannot be read: {' '.join(str(error).split())}.")
            return error_response(request, unreadable)
        except ConnectionError:
            raise  # the client is gone; aiohttp closes what is left
        except Exception:
            log.exception("%s %s %s failed", identity, request.method, request.path)
            return error_response(request, internal_error(identity))

    def _admit(self, request: web.Request, identity: str) -> Caller:
        account = self._tenants.authenticate(request.headers)
        if self.draining:
            raise EngineDeadError("The server is stopping; send the request again.", retry_after=1.0)
        return Caller(identity, account)


async def begin(request: web.Request, response: web.StreamResponse) -> None:
    """Of a response that begins before its handler returns."""
    name_response(request, response)
    await response.prepare(request)


def name_response(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Every response carries its request's id, and no version numbers. (aiohttp's signal for that costs 4 µs a request.)"""
    headers = response.headers
    headers["Server"] = SERVER
    record: RequestRecord | None = request.get(RECORD)  # the admin listener keeps none
    if record is None:
        return
    headers[REQUEST_ID] = record.request_id
    if anthropic.is_messages(request.path):
        headers[anthropic.REQUEST_ID] = record.request_id
    if (admission := request.get(ADMISSION)) is not None:
        headers.update(admission.headers)
    if record.routing is not None:
        headers[ROUTE] = record.routing


def caller_of(request: web.Request) -> Caller:
    caller: Caller = request[CALLER]
    return caller


def _route(request: web.Request) -> str:
    """The route's pattern, not the path: a scanner's thousand paths must not become a thousand series."""
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical
