"""An upstream's error reply as ours: its own words, and whether another attempt or another upstream may do better."""

from datetime import UTC, datetime

import orjson

from ...errors import (
    PenstockError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnfitError,
)
from .backoff import retry_after
from .connection import Response

# Another upstream may have what this one lacks: a valid key, credit, the model, time, room.
_ELSEWHERE = frozenset({401, 402, 403, 404, 408, 409, 425, 429})
_SHOWN = 500


def refusal_of(response: Response, body: bytes, upstream: str) -> PenstockError:
    """For a reply whose status is not 200."""
    wait = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    status = response.status
    if status in (401, 403):
        # Our key, not the client's: whose own is in order, or it would not have come this far.
        return UpstreamUnfitError(
            f"The upstream {upstream} answered {status}: it does not take the key that this server has for it."
        )
    if status < 400:
        # A redirect is not followed: it would carry the key, and the prompt, to wherever it points.
        return UpstreamUnfitError(
            f"The upstream {upstream} answered {status}, which is no answer to a question."
        )
    error = _error_in(body)
    message = error.get("message") or body[:_SHOWN].decode("utf-8", "replace").strip() or response.reason
    type_ = error.get("type")
    code, param = error.get("code"), error.get("param")
    return UpstreamRefusedError(
        str(message),
        status=status,
        type=type_ if isinstance(type_, str) else _type_of(status),
        code=code if isinstance(code, str) else None,
        param=param if isinstance(param, str) else None,
        retry_after=wait,
    )


def error_in(event: bytes) -> str | None:
    """The message of an error that came as an event of a stream; None where it is none."""
    error = _error_in(event)
    if not error:
        return None
    return str(error.get("message") or error)


def may_do_better_elsewhere(error: PenstockError) -> bool:
    """Whether the next target is worth asking."""
    if isinstance(error, UpstreamRefusedError):
        return error.status >= 500 or error.status in _ELSEWHERE
    return isinstance(error, UpstreamError)


def may_do_better_again(error: PenstockError) -> bool:
    """Whether the same upstream is. One that was too slow would be asked, and paid, for what it may still be computing."""
    if isinstance(error, UpstreamRefusedError):
        return error.status >= 500 or error.status in (408, 409, 425, 429)
    return isinstance(error, UpstreamError) and not isinstance(
        error, UpstreamTimeoutError | UpstreamUnfitError
    )


def _error_in(body: bytes) -> dict[str, object]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(value, list) and value:  # as Google's
        value = value[0]
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
