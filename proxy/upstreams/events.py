"""Server-sent events of an upstream: whole ones only, their bytes untouched."""

import re

from ...errors import UpstreamUnfitError

MAX_EVENT_BYTES = 8 << 20
# An empty line; both kinds of line end may stand in one stream, where something on the way adds comments.
_END = re.compile(rb"\n\r?\n")


class EventSplitter:
    """Cuts what arrives where an event ends: half of one is of no use to a client, and could not be followed by an error."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now; possibly none. Raises UpstreamUnfitError when one gets too long."""
        if not self._rest and data.endswith(b"\n\n"):  # nearly always
            return data
        data = self._rest + data
        end = max(_end_of_last(b"\n\n", data), _end_of_last(b"\n\r\n", data))
        self._rest = data[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise UpstreamUnfitError(f"sent an event longer than {MAX_EVENT_BYTES} bytes")
        return data[:end]

    @property
    def has_rest(self) -> bool:
        """The stream stops within an event."""
        return bool(self._rest.strip())


def _end_of_last(separator: bytes, data: bytes) -> int:
    place = data.rfind(separator)
    return 0 if place < 0 else place + len(separator)


def split(block: bytes) -> list[bytes]:
    """The events of whole ones, each with the empty line that ends it."""
    if block.find(b"\n\n") == len(block) - 2 and b"\r" not in block:  # nearly always
        return [block]
    events, start = [], 0
    for end in _END.finditer(block):
        events.append(block[start : end.end()])
        start = end.end()
    return events


def data_of(event: bytes) -> bytes:
    """What stands in an event's data lines; empty for a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:  # nearly always
        return event[6:-2]
    lines = [line.removeprefix(b"data:") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines)
