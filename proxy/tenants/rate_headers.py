"""How much is left of a tenant's limits, as OpenAI's `x-ratelimit-*` headers say it."""

import math

from .bucket import left, seconds_to_full
from .standing import Standing
from .tenant import Limits


def rate_headers(limits: Limits, standing: Standing) -> dict[str, str]:
    """For every limit a minute that is set: what it is, what is left, and when nothing will be missing."""
    headers = {}
    if (rpm := limits.rpm) is not None:
        headers["x-ratelimit-limit-requests"] = str(rpm)
        headers["x-ratelimit-remaining-requests"] = str(left(standing.requests, rpm))
        headers["x-ratelimit-reset-requests"] = _duration(seconds_to_full(standing.requests, rpm))
    if (tpm := limits.tpm) is not None:
        headers["x-ratelimit-limit-tokens"] = str(tpm)
        headers["x-ratelimit-remaining-tokens"] = str(left(standing.tokens, tpm))
        headers["x-ratelimit-reset-tokens"] = _duration(seconds_to_full(standing.tokens, tpm))
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes them: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:.3g}s"
