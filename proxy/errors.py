"""Every failure as an error object, whether ours, aiohttp's, or the HTTP parser's: OpenAI's, or where the path is one of
Anthropic's API, its own.
"""

import logging
import math
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from ..errors import PenstockError
from .anthropic import errors as anthropic
from .observe.record import RequestRecord
from .observe.recorder import RECORD

log = logging.getLogger(__name__)

JSON = "application/json"
SERVER = "penstock"  # without the version numbers that aiohttp would send

# What the parser takes (aiohttp's own defaults, said here so that an update cannot change them unseen): of the request
# line, of one header, and of headers altogether at most their product, about 1 MiB.
MAX_LINE_BYTES = 8190
MAX_HEADERS = 128


def error_body(message: str, type_: str, *, param: str | None = None, code: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}})


def body_of(error: PenstockError) -> bytes:
    return error_body(error.message, error.type, param=error.param, code=error.code)


def internal_error(request_id: str) -> PenstockError:
    return PenstockError(f"The server failed on this request; its log has the reason under {request_id}.")


def error_response(request: web.BaseRequest, error: PenstockError) -> web.Response:
    response = _response(request, error.status, error.message, error.type, param=error.param, code=error.code)
    response.headers.update(error.headers)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        response.headers["Accept-Encoding"] = "gzip, deflate"  # what a client may pack its next body with
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def http_error_response(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals: no such route, wrong method, too large a body, and the like."""
    code: str | None = None
    if isinstance(error, web.HTTPMethodNotAllowed):
        code = "method_not_allowed"
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.path} does not take {request.method}; it takes {allowed}."
    elif isinstance(error, web.HTTPNotFound):
        code = "not_found"
        message = (
            f"There is nothing at {request.method} {request.path}; the API begins at /v1/chat/completions."
        )
    elif isinstance(error, web.HTTPRequestEntityTooLarge):
        code = "body_too_large"
        message = (
            f"The body is larger than {request.client_max_size} bytes (setting max_body_bytes); send less."
        )
    else:
        message = f"{error.reason}."
    response = _response(request, error.status, message, _type_of(error.status), code=code)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def parser_error_response(status: int, error: BaseException | None, message: str | None) -> web.Response:
    """For what never became a request: broken HTTP, headers too long. What was sent is not quoted."""
    said = message.strip().splitlines()[0] if message else ""
    if isinstance(error, LineTooLong) or said.startswith("Too many headers"):
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        reason = (
            f"Its first line and headers are too large: {MAX_LINE_BYTES} bytes a line, {MAX_HEADERS} headers"
        )
    else:
        reason = f"The request is not valid HTTP: {said.rstrip(':.') or HTTPStatus(status).phrase}"
    body = error_body(f"{reason}.", _type_of(status))
    response = web.Response(body=body, status=status, content_type=JSON, headers={"Server": SERVER})
    response.force_close()
    return response


def _response(
    request: web.BaseRequest,
    status: int,
    message: str,
    type_: str,
    *,
    param: str | None = None,
    code: str | None = None,
) -> web.Response:
    """The one place where the path decides the shape."""
    if anthropic.is_messages(request.path):
        record: RequestRecord | None = request.get(RECORD)
        identity = "" if record is None else record.request_id
        body = anthropic.error_body(status, message, identity, param=param)
    else:
        body = error_body(message, type_, param=param, code=code)
    return web.Response(body=body, status=status, content_type=JSON)


def _type_of(status: int) -> str:
    return "invalid_request_error" if status < 500 else "server_error"
