"""What an upstream has begun to send: read at the client's pace, within the upstream's time."""

import time
from collections.abc import Callable

from ...errors import UpstreamError, UpstreamTimeoutError, UpstreamUnfitError
from ..patience import Patience
from .connection import HttpError, Response
from .events import EventSplitter, data_of, split
from .refusal import error_in

MAX_BODY_BYTES = 64 << 20


class UpstreamReply:
    """Args:
    upstream: its name, for messages.
    idle_timeout: seconds between two pieces of a stream.
    total_timeout: seconds in which all of it must come, which are over at `deadline` (`time.monotonic`).
    secret: what no message may repeat.

    Attributes:
        body: all of it, after `read_all`.
        is_stream: it is one of events.
        on_close: called once.
    """

    def __init__(
        self,
        upstream: str,
        response: Response,
        *,
        idle_timeout: float,
        total_timeout: float,
        deadline: float,
        secret: str | None,
    ) -> None:
        self.upstream = upstream
        self.body = b""
        self.is_stream = response.content_type == "text/event-stream"
        self.on_close: Callable[[], None] = lambda: None
        self._response = response
        self._idle_timeout = idle_timeout
        self._total_timeout = total_timeout
        self._deadline = deadline
        self._secret = secret
        self._closed = False
        self._patience: Patience | None = (
            None  # of a stream; that of the response limits the wait for its first token
        )
        self._splitter = EventSplitter()
        self._first = b""

    @property
    def request_id(self) -> str | None:
        """What the upstream calls this request."""
        headers = self._response.headers
        identity = headers.get("x-request-id") or headers.get("request-id") or ""
        return identity if identity.isascii() and identity.isprintable() and identity else None

    async def begin(self) -> None:
        """Waits for the first event that carries data; with a reply that is no stream after all, for all of it.

        Raises UpstreamError, also when that event is an error, or nothing comes.
        """
        if not self.is_stream:
            await self.read_all()
            return
        begun = b""
        while b"data:" not in begun:
            block = await self.next_block()
            if not block:
                raise UpstreamError(f"The upstream {self.upstream} ended its stream before the first token.")
            begun += block
        self._first = begun
        if b'"error"' in begun:
            first = next(data for event in split(begun) if (data := data_of(event)))
            if (message := error_in(first)) is not None:
                raise UpstreamError(f"The upstream {self.upstream} failed at once: {self.shown(message)}")

    async def read_all(self) -> None:
        """Fills `body`. Raises UpstreamError."""
        parts, size = [], 0
        try:
            while data := await self._response.content.readany():
                parts.append(data)
                size += len(data)
                if size > MAX_BODY_BYTES:
                    raise UpstreamUnfitError(
                        f"The upstream {self.upstream} sent more than {MAX_BODY_BYTES} bytes."
                    )
        except HttpError as error:
            raise UpstreamError(f"The upstream {self.upstream} broke off its reply.") from error
        self.body = b"".join(parts)
        self._response.release()

    def shown(self, message: str) -> str:
        """What a message may show."""
        return message if self._secret is None else message.replace(self._secret, "...")

    async def next_block(self) -> bytes:
        """Whole events, as they come; empty at the end. Raises UpstreamError where the stream breaks or stalls."""
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._patience is None:
            self._patience = Patience(self._idle_timeout)
        while True:
            left = self._deadline - time.monotonic()
            self._patience.seconds = left if left < self._idle_timeout else self._idle_timeout
            try:
                with self._patience:
                    data = await self._response.content.readany()
            except TimeoutError as error:
                what = f"sent nothing for {self._idle_timeout:g}"
                if left < self._idle_timeout:
                    what = f"not ended its reply within {self._total_timeout:g}"
                raise UpstreamTimeoutError(f"The upstream {self.upstream} has {what} seconds.") from error
            except HttpError as error:
                raise UpstreamError(f"The upstream {self.upstream} broke off its stream.") from error
            if not data:
                if self._splitter.has_rest:
                    raise UpstreamError(f"The upstream {self.upstream} ended its stream within an event.")
                self._response.release()
                return b""
            try:
                block = self._splitter.feed(data)
            except UpstreamUnfitError as error:
                raise UpstreamUnfitError(f"The upstream {self.upstream} {error.message}.") from None
            if block:
                return block

    def close(self) -> None:
        """Lets go of the connection; a reply that has not ended is cut off, which tells the upstream to stop."""
        if not self._closed:
            self._closed = True
            if self._patience is not None:
                self._patience.close()
            self.on_close()
        self._response.close()
