"""The embedder as asyncio sees it: texts in, unit vectors out, over a socket to the process that computes them.

    embedder = AsyncEmbedder("path/to/all-MiniLM-L6-v2")
    vectors = await embedder.embed(["How do I list files?"])      # [1, 384] float32
    await embedder.shutdown()

The process starts with the first call: who embeds nothing pays nothing. Text stays on this side, as it does with the
engine: what goes over the socket is token ids.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ..errors import EngineDeadError, InvalidRequestError, ModelLoadError, OverloadedError
from .embedder_protocol import (
    Cancel,
    Embed,
    Embedded,
    EmbedderConfig,
    EmbedderInfo,
    FromEmbedder,
    Ready,
    ToEmbedder,
)
from .host import ChildProcess
from .protocol import FrameDecoder, LoadFailed, encode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..models.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Tokens that may wait of one `AsyncEmbedder`: some 15 seconds of one core.
MAX_WAITING_TOKENS = 1 << 19
# No token of a language is as long; what lies behind so many characters per token is not even looked at.
CHARACTERS_PER_TOKEN = 128
# From so many characters on, tokenizing is a thread's work.
LONG_TEXT = 4096
# Processes that may end over a request, or while loading for it.
ATTEMPTS = 2
LOAD_SECONDS = 120.0
RETRY_SECONDS = 5.0


class EmbedderProcess(ChildProcess):
    """The embedder in a child process. `model`: a folder or a hub id."""

    def __init__(self, model: str) -> None:
        super().__init__("embedder", "embedder_server", EmbedderConfig(model))


@dataclass(frozen=True, slots=True)
class EncodedText:
    """`is_cut`: it was longer than the model reads, and its end is missing."""

    token_ids: list[int]
    is_cut: bool


class AsyncEmbedder:
    """Owns an embedder's process, or is one of its clients (`connect`). Fulfils `cache.embedder.Embedder`.

    A process that dies is started again, by its owner, for what waits: a caller notices nothing but the time, unless
    it happens twice over the same request.
    """

    def __init__(self, model: str) -> None:
        self._host: ChildProcess | None = EmbedderProcess(model)
        self._init(self._host.address)

    @classmethod
    def connect(cls, address: str) -> "AsyncEmbedder":
        """A client of a process that somebody else starts whenever a client waits at `address`, its Unix socket."""
        embedder = cls.__new__(cls)
        embedder._host = None
        embedder._init(address)
        return embedder

    def _init(self, address: str) -> None:
        self.address = address
        self._link: _Link | None = None
        self._opening: asyncio.Task[_Link] | None = None
        self._tokenizer: Tokenizer | None = None
        self._failure: ModelLoadError | None = None
        self._is_shut = False
        self._waiting_tokens = 0
        self._info: EmbedderInfo | None = None

    async def start(self) -> EmbedderInfo:
        """Wait until the model is loaded, which the first call does otherwise.

        Raises ModelLoadError when it cannot be, EngineDeadError when its process ends or does not answer.
        """
        await self._linked()
        return self.info

    @property
    def info(self) -> EmbedderInfo:
        assert self._info is not None, "await start() first"
        return self._info

    @property
    def dims(self) -> int:
        return self.info.dims

    @property
    def fingerprint(self) -> str:
        return self.info.fingerprint

    async def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """[n, dims] float32, each of length 1, in the order of the texts.

        Of a text longer than the model reads, its first tokens count. The empty text has a vector too.

        Raises OverloadedError when too much waits already, else as `start`.
        """
        encoded = await self.encode(texts)
        return await self.embed_token_ids([text.token_ids for text in encoded])

    async def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Token ids as the model reads them, special tokens included, cut to `info.max_tokens`."""
        await self._linked()
        if sum(map(len, texts)) < LONG_TEXT:
            return self._encode(texts)
        return await asyncio.to_thread(self._encode, texts)

    def _encode(self, texts: Sequence[str]) -> list[EncodedText]:
        assert self._tokenizer is not None
        most = self.info.max_tokens
        encoded = []
        for text in texts:
            looked_at = text[: most * CHARACTERS_PER_TOKEN]
            token_ids = self._tokenizer.encode(looked_at)
            is_cut = len(token_ids) > most or len(looked_at) < len(text)
            if len(token_ids) > most:  # the last one ends every text
                token_ids = [*token_ids[: most - 1], token_ids[-1]]
            encoded.append(EncodedText(token_ids, is_cut))
        return encoded

    async def embed_token_ids(self, token_ids: Sequence[list[int]]) -> "NDArray[np.float32]":
        """The same for token ids, which are taken as they are: with the special tokens that the model wants.

        Raises InvalidRequestError for an id that the model has not, and for a text of no tokens or too many.
        """
        import numpy as np

        await self._linked()
        self._check(token_ids)
        size = sum(map(len, token_ids))
        if self._waiting_tokens and self._waiting_tokens + size > MAX_WAITING_TOKENS:
            raise OverloadedError(
                f"{self._waiting_tokens} tokens wait to be embedded, of {MAX_WAITING_TOKENS} that may; send fewer at once.",
                retry_after=RETRY_SECONDS,
            )
        if not token_ids:
            return np.empty((0, self.dims), np.float32)
        self._waiting_tokens += size
        try:
            for _ in range(ATTEMPTS):
                link = await self._linked()
                with contextlib.suppress(ConnectionError):
                    vectors = await link.embed(list(token_ids))
                    return np.frombuffer(vectors, np.float32).reshape(-1, self.dims)
        finally:
            self._waiting_tokens -= size
        raise EngineDeadError(
            f"The embedder ended {ATTEMPTS} times while computing this request; it is given up.",
            retry_after=RETRY_SECONDS,
        )

    def _check(self, token_ids: Sequence[list[int]]) -> None:
        info = self.info
        for ids in token_ids:
            if not 1 <= len(ids) <= info.max_tokens:
                raise InvalidRequestError(
                    f"A text has {len(ids)} tokens; this model reads 1 to {info.max_tokens}.", param="input"
                )
            if min(ids) < 0 or max(ids) >= info.vocab_size:
                wrong = next(token_id for token_id in ids if not 0 <= token_id < info.vocab_size)
                raise InvalidRequestError(
                    f"input holds the token {wrong}; ids of this model are 0..{info.vocab_size - 1}.",
                    param="input",
                )

    async def shutdown(self) -> None:
        """Stop an owned process, or leave another's; calls in flight end with EngineDeadError."""
        self._is_shut = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._link is not None:
            self._link.close()
        if self._host is not None:
            await asyncio.to_thread(self._host.stop)

    async def _linked(self) -> "_Link":
        """The open connection; all who wait for one wait for the same."""
        if self._failure is not None:
            raise self._failure
        if self._is_shut:
            raise EngineDeadError("The embedder was shut down.")
        if self._link is not None and self._link.is_open:
            return self._link
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="penstock-embedder-link")
            self._opening.add_done_callback(self._opened)
        try:
            # Shielded: one caller who leaves does not take the connection from the others.
            return await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            if self._is_shut:
                raise EngineDeadError("The embedder was shut down.") from None
            raise

    def _opened(self, task: "asyncio.Task[_Link]") -> None:
        self._opening = None
        if not task.cancelled() and isinstance(error := task.exception(), ModelLoadError):
            self._failure = error  # nothing that trying again could change

    async def _open(self) -> "_Link":
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[EmbedderInfo] = loop.create_future()
        _, link = await loop.create_unix_connection(lambda: _Link(ready), self.address)
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                self._info = await self._greeting(ready)
            if self._tokenizer is None:
                from ..models.tokenizer import Tokenizer

                self._tokenizer = await asyncio.to_thread(Tokenizer.load, self.info.path)
        except (TimeoutError, ConnectionError) as error:
            ready.cancel()
            link.close()
            raise EngineDeadError(
                "The embedder does not come up; its log says why.", retry_after=RETRY_SECONDS
            ) from error
        except BaseException:
            ready.cancel()
            link.close()
            raise
        self._link = link
        return link

    async def _greeting(self, ready: "asyncio.Future[EmbedderInfo]") -> EmbedderInfo:
        """Starts an owned process as often as it may end; our place in the queue of its socket outlives it."""
        starts = 0
        while not ready.done():
            if self._host is not None and not self._host.alive:
                if starts == ATTEMPTS:
                    raise ConnectionResetError
                starts += 1
                if self._info is not None or starts > 1:
                    log.error("the embedder died; starting it again")
                self._host.start()
            await asyncio.wait({ready}, timeout=0.1)
        return ready.result()


class _Link(asyncio.Protocol):
    """The client's end of the socket."""

    def __init__(self, ready: "asyncio.Future[EmbedderInfo]") -> None:
        self._ready = ready
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._decoder: FrameDecoder[FromEmbedder] = FrameDecoder(FromEmbedder)
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def embed(self, token_ids: list[list[int]]) -> bytes:
        """Raises ConnectionError when the process ends before its answer."""
        request_id = next(self._ids)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = answer
        self._send(Embed(request_id, token_ids))
        try:
            return await answer
        except asyncio.CancelledError:
            self._send(Cancel(request_id))
            raise
        finally:
            self._asked.pop(request_id, None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            if isinstance(message, Embedded):
                answer = self._asked.get(message.request_id)
                if answer is not None and not answer.done():
                    answer.set_result(message.vectors)
            elif self._ready.done():
                continue
            elif isinstance(message, Ready):
                self._ready.set_result(message.info)
            elif isinstance(message, LoadFailed):
                self._ready.set_exception(ModelLoadError(message.message, param="embedding_model"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        lost = ConnectionResetError("the embedder's process ended")
        if not self._ready.done():
            self._ready.set_exception(lost)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(lost)

    def _send(self, message: ToEmbedder) -> None:
        if self.is_open:
            assert self._transport is not None
            self._transport.write(encode(message))
