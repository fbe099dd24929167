"""How one API's requests are put to an upstream, in its own API or in another, and how its replies are read."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ..routing.target import RemoteTarget
from .reading import Reading
from .translation import PartsReader, Telling, Translation, told_again

if TYPE_CHECKING:
    from ..answering import Asked

EXTENSION = "penstock"
# They change no answer, so that they part no entries of the cache.
_BESIDE_THE_POINT = frozenset(
    {EXTENSION, "metadata", "prompt_cache_key", "safety_identifier", "stream", "stream_options", "user"}
)


class RemoteApi(msgspec.Struct, frozen=True, kw_only=True):
    """One API as its clients speak it, put to upstreams that speak the same or another.

    Attributes:
        name: tells apart what the cache keeps.
        path: behind an upstream's base_url.
        fields: what is sent; None: what has come, as it is.
        reading: of one reply; the booleans are whether it may be kept, and whether the usage event is for us alone.
        replay: from what was kept to what the client gets.
        asks_for_usage: streams tell their token counts only when asked.
        headers: of the client's that are passed on.
    """

    name: str
    path: str
    fields: Callable[["Asked"], dict[str, Any]] | None = None
    reading: Callable[["Asked", RemoteTarget, bool, bool], Reading]
    replay: Callable[["Asked", RemoteTarget, bytes], bytes]
    asks_for_usage: bool = False
    headers: tuple[str, ...] = ()


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """An upstream's API, as far as answers of parts need it."""

    name: str
    path: str
    reader: Callable[[], PartsReader]
    from_chat: Callable[[dict[str, Any]], dict[str, Any]]
    asks_for_usage: bool = False


def translated(
    name: str,
    spoken: Spoken,
    *,
    to_chat: Callable[["Asked"], dict[str, Any]],
    telling: Callable[["Asked", RemoteTarget], Telling],
) -> RemoteApi:
    """The API called `name`, for upstreams that speak another."""
    return RemoteApi(
        name=f"{name} by {spoken.name}",
        path=spoken.path,
        fields=lambda asked: spoken.from_chat(to_chat(asked)),
        reading=lambda asked, target, keep, _own_usage: Translation(
            spoken.reader(), telling(asked, target), keep=keep
        ),
        replay=lambda asked, target, wire: told_again(wire, telling(asked, target), stream=asked.stream),
        asks_for_usage=spoken.asks_for_usage,
    )


def cacheable_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All that can change the answer."""
    return {name: value for name, value in fields.items() if name not in _BESIDE_THE_POINT}


def wants_usage(fields: Mapping[str, Any]) -> bool:
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
