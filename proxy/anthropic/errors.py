"""Errors as Anthropic's API tells them. Nothing of ours is imported: whatever answers HTTP may need it."""

import orjson

PREFIX = "/v1/messages"
# Beside the server's own x-request-id: where Anthropic's clients look.
REQUEST_ID = "request-id"

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def is_messages(path: str) -> bool:
    """Whether what is asked at this path is told in Anthropic's shapes."""
    return path == PREFIX or path.startswith(PREFIX + "/")


def type_of(status: int) -> str:
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def error_body(status: int, message: str, request_id: str, *, param: str | None = None) -> bytes:
    """`param`: the field at fault; Anthropic's shape has no place for it but the message."""
    if param and param not in message:
        message = f"{param}: {message}"
    error = {"type": type_of(status), "message": message}
    return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
