"""What an API looks like from the asking side: where it is, what of a request is ours, and how its replies are read."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ...errors import PenstockError
from .reading import Reading

EXTENSION = "penstock"
# They change no answer, so that they part no entries of the cache.
_BESIDE_THE_POINT = frozenset(
    {EXTENSION, "metadata", "prompt_cache_key", "safety_identifier", "stream", "stream_options", "user"}
)


class RemoteApi(msgspec.Struct, frozen=True, kw_only=True):
    """One API, spoken by clients and upstreams alike.

    Attributes:
        path: behind an upstream's base_url.
        reading: of one reply; arguments `keep`, `own_usage` as OpenAIReading's.
        replay: a kept answer as a stream.
        failed: how a stream tells that it breaks off here.
        headers: of the client's that are passed on.
    """

    path: str
    reading: Callable[[bool, bool], Reading]
    replay: Callable[[bytes, bool], bytes]
    failed: Callable[[PenstockError], bytes]
    asks_for_usage: bool
    headers: tuple[str, ...] = ()


def cacheable_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All that can change the answer."""
    return {name: value for name, value in fields.items() if name not in _BESIDE_THE_POINT}


def wants_usage(fields: Mapping[str, Any]) -> bool:
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
