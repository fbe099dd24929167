"""How an attempt at an upstream ended, in the words of the figures."""

from ...errors import UpstreamError, UpstreamRefusedError, UpstreamTimeoutError
from ..observe.upstream_metrics import AttemptOutcome
from .connection import NotConnected


def outcome_of(error: BaseException) -> AttemptOutcome:
    """Of an attempt that gave no first token."""
    if isinstance(error, UpstreamRefusedError):
        if error.status == 429:
            return "rate_limited"
        return "server_error" if error.status >= 500 else "refused"
    if isinstance(error, UpstreamTimeoutError):
        return "timeout"
    if isinstance(error, UpstreamError):
        return "connect_error" if isinstance(error.__cause__, NotConnected) else "broken"
    return "aborted"
