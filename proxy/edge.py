"""What holds for every request: its id, its tenant, a refusal while draining, errors as JSON, one count per
answer.
"""

import logging
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from ..errors import EngineDeadError, InvalidRequestError, PenstockError
from .anthropic import errors as anthropic
from .controls import REQUEST_ID, request_id
from .errors import SERVER, error_response, http_error_response, internal_error
from .metrics import Metrics
from .tenants.tenant import Tenant
from .tenants.tenants import Tenants

log = logging.getLogger(__name__)

CALLER = "penstock_caller"
ADMISSION = "penstock_admission"
# Open without a key: probes and scrapers have none, and the description of the API, the same on every server of this
# version, names no model and no version. Routes as they were matched, not paths as they were written.
OPEN_ROUTES = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/openapi.json"})
CLIENT_GONE = "499"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request, and when it arrived (`time.perf_counter` seconds)."""

    request_id: str
    account: Tenant
    arrived: float

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

    def __init__(self, metrics: Metrics, tenants: Tenants) -> None:
        self.draining = False
        self.in_flight = 0
        self._metrics = metrics
        self._tenants = tenants

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        identity = request_id(request.headers)
        request[REQUEST_ID] = identity
        status = CLIENT_GONE
        self.in_flight += 1
        try:
            response = await self._answer(request, handler, identity)
            status = str(response.status)
            return response
        finally:
            self.in_flight -= 1
            self._metrics.http_requests.labels(_route(request), status).inc()

    async def _answer(self, request: web.Request, handler: Handler, identity: str) -> web.StreamResponse:
        try:
            if _route(request) not in OPEN_ROUTES:
                request[CALLER] = self._admit(request, identity)
            return await handler(request)
        except PenstockError as error:
            log.log(error.log_level, "%s %s %s: %s", identity, request.method, request.path, error.message)
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
        arrived = time.perf_counter()
        account = self._tenants.authenticate(request.headers)
        if self.draining:
            raise EngineDeadError("The server is stopping; send the request again.", retry_after=1.0)
        return Caller(identity, account, arrived)


async def name_response(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: every response, streamed or not, carries its request's id, and no version numbers."""
    response.headers["Server"] = SERVER
    if (admission := request.get(ADMISSION)) is not None:
        response.headers.update(admission.headers)
    identity = request.get(REQUEST_ID)
    if identity is not None:
        response.headers[REQUEST_ID] = identity
        if anthropic.is_messages(request.path):
            response.headers[anthropic.REQUEST_ID] = identity


def caller_of(request: web.Request) -> Caller:
    caller: Caller = request[CALLER]
    return caller


def _route(request: web.Request) -> str:
    """The route's pattern, not the path: a scanner's thousand paths must not become a thousand series."""
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical
