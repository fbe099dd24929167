"""Every error Penstock raises on purpose. Each class knows how it looks on the wire and in the log.

    PenstockError                 500 server_error
    ├── InvalidRequestError       400 invalid_request_error      the caller can fix it
    │   ├── UnsupportedParameterError   code unsupported_parameter: understood, but not honoured here
    │   └── ContextLengthError          code context_length_exceeded
    ├── RequestTimeoutError       408 the body did not come
    ├── UnsupportedEncodingError  415 the body is packed in a way that is not read here
    ├── AuthenticationError       401
    ├── ModelNotAllowedError      403 permission_error: the tenant may not use this model
    ├── NotFoundError             404 what is managed here has no such name
    ├── ModelNotFoundError        404 code model_not_found
    ├── NotStoredError            404 of what this server does not keep
    ├── OverloadedError           429 with Retry-After: the queue is full
    ├── RateLimitError            429 with Retry-After: a limit of the tenant's
    ├── BudgetExceededError       429 code insufficient_quota: the tenant's money is spent
    ├── EngineDeadError           503 with Retry-After: the engine is gone or restarting
    ├── UpstreamError             502: an upstream cannot be reached, or what it sends is no answer
    │   ├── UpstreamTimeoutError  504: it took too long
    │   │   └── UpstreamConnectError   for a connection, so that it has been asked nothing
    │   ├── UpstreamUnfitError    502: what it sends would be no better another time
    │   ├── UpstreamBusyError     503 with Retry-After: it has failed too often, and is left alone
    │   └── UpstreamRefusedError  it answered with an error, which is passed on
    ├── ConfigError               at start: a setting is wrong
    ├── ModelLoadError            at start: a model cannot be served
    ├── CompressError             a model cannot be compressed or judged: never on the wire
    └── TuneError                 nothing that was measured can be recommended: never on the wire

A message names the value, the limit and the remedy. A leaf: imports nothing of ours.
"""

import logging
from collections.abc import Mapping
from typing import ClassVar

# A message may quote what the caller sent: its beginning and its end, not the megabytes between.
_LONGEST, _BEGINNING, _END = 2000, 1200, 600


class PenstockError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what is wrong, the limit, and what to do about it; sent to the caller as it is.
        param: the request field or setting at fault, if there is one.
        retry_after: seconds after which trying again makes sense (sent as `Retry-After`).
        headers: further headers of the reply.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    log_level: ClassVar[int] = logging.ERROR

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if len(message) > _LONGEST:
            message = f"{message[:_BEGINNING]} ... {message[-_END:]}"
        super().__init__(message)
        self.message = message
        self.param = param[:_END] if param else param
        self.retry_after = retry_after
        self.headers = headers or {}

    @property
    def logged(self) -> str:
        """What the log says of it."""
        return self.message


class InvalidRequestError(PenstockError):
    status = 400
    type = "invalid_request_error"
    log_level = logging.INFO


class UnsupportedParameterError(InvalidRequestError):
    code = "unsupported_parameter"


class ContextLengthError(InvalidRequestError):
    code = "context_length_exceeded"


class RequestTimeoutError(PenstockError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    log_level = logging.INFO


class UnsupportedEncodingError(PenstockError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_encoding"
    log_level = logging.INFO


class AuthenticationError(PenstockError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    log_level = logging.WARNING


class ModelNotAllowedError(PenstockError):
    status = 403
    type = "permission_error"
    code = "model_not_allowed"
    log_level = logging.WARNING


class NotFoundError(PenstockError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"
    log_level = logging.INFO


class ModelNotFoundError(PenstockError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    log_level = logging.INFO


class NotStoredError(PenstockError):
    status = 404
    type = "invalid_request_error"
    code = "not_stored"
    log_level = logging.INFO


class OverloadedError(PenstockError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    log_level = logging.WARNING


class RateLimitError(PenstockError):
    """`headers` hold OpenAI's `x-ratelimit-*` figures."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    log_level = logging.INFO


class BudgetExceededError(PenstockError):
    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    log_level = logging.INFO


class EngineDeadError(PenstockError):
    status = 503
    code = "engine_unavailable"


class UpstreamError(PenstockError):
    status = 502
    code = "upstream_failed"
    log_level = logging.WARNING


class UpstreamTimeoutError(UpstreamError):
    status = 504
    code = "upstream_timeout"


class UpstreamConnectError(UpstreamTimeoutError):
    pass


class UpstreamUnfitError(UpstreamError):
    pass


class UpstreamBusyError(UpstreamError):
    status = 503
    code = "upstream_unavailable"


class UpstreamRefusedError(UpstreamError):
    """The upstream's own refusal.

    Args:
        status, type, code: as it sent them.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,
        code: str | None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.status = status  # type: ignore[misc]  # elsewhere it goes by the class
        self.type = type  # type: ignore[misc]
        self.code = code  # type: ignore[misc, assignment]

    @property
    def logged(self) -> str:
        """Not the upstream's words: they may repeat the prompt."""
        return f"the upstream answered {self.status} ({self.code or self.type})"


class ConfigError(PenstockError):
    code = "invalid_config"


class ModelLoadError(PenstockError):
    code = "model_load_failed"


class CompressError(PenstockError):
    code = "compress_failed"


class TuneError(PenstockError):
    code = "tune_failed"


class Terminated(KeyboardInterrupt):
    """SIGTERM during a long command, or a terminal that is closed: it ends in order, as by Ctrl-C. Nothing is wrong."""
