"""The embedder's process: takes all texts that wait, embeds them in one forward, answers whose texts are done.

`python -m penstock.scheduler.embedder_server`. One thread on one core. It reads sockets between two forwards, each of
which is short; requests take turns text by text, so that a question never waits for somebody's thousand documents.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING, cast

import msgspec

from ..errors import ModelLoadError
from .embedder_protocol import (
    Cancel,
    Embed,
    Embedded,
    EmbedderConfig,
    EmbedderInfo,
    Ready,
    ToEmbedder,
)
from .host import inherited, remove_address, report_failure
from .protocol import FrameDecoder, encode

if TYPE_CHECKING:
    from ..models.embedding_model import EmbeddingModel

log = logging.getLogger(__name__)

# A forward of so many tokens takes 3 ms on one core; a question waits for the one under way, and is part of the next. Beside
# 3,000 documents half of the questions took up to 11 ms, and 31 with batches of 256 tokens, which embedded 2,230 texts a
# second where these embed 2,120 (measured).
BATCH_TOKENS = 96


class Job:
    """One request: its texts, and the vectors of those that are done, in order."""

    def __init__(self, client: "Client", request: Embed) -> None:
        self.client = client
        self.request_id = request.request_id
        self.texts = request.token_ids
        self.taken = 0
        self.vectors = bytearray()
        self.cancelled = False


class TurnQueue:
    """Requests with texts that were not taken yet. Each gives one text at its turn."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: Job) -> None:
        self._jobs.append(job)

    def take(self, most_tokens: int) -> list[tuple[Job, list[int]]]:
        """Texts of `most_tokens` tokens together, or a single longer one; of one request they come in its order."""
        taken: list[tuple[Job, list[int]]] = []
        tokens = 0
        while self._jobs:
            job = self._jobs[0]
            if job.cancelled:
                self._jobs.popleft()
                continue
            text = job.texts[job.taken]
            tokens += len(text)
            if taken and tokens > most_tokens:
                break
            taken.append((job, text))
            job.taken += 1
            self._jobs.popleft()
            if job.taken < len(job.texts):
                self._jobs.append(job)
        return taken


class EmbedderServer:
    """Serves one model to any number of clients until `lifeline` ends."""

    def __init__(self, model: "EmbeddingModel", path: str) -> None:
        self.info = EmbedderInfo(path, model.dims, model.max_tokens, model.vocab_size, model.fingerprint)
        self._model = model
        self._queue = TurnQueue()
        self._arrived = asyncio.Event()

    async def run(self, listener: socket.socket, lifeline: int) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        # Never closed: Python 3.13 would remove the address, which the next process of the same owner serves.
        self._server = await loop.create_unix_server(lambda: Client(self), sock=listener)
        working = asyncio.create_task(self._work())
        loop.add_reader(lifeline, working.cancel)
        with contextlib.suppress(asyncio.CancelledError):  # the owner is gone, or has us stop
            await working

    def add(self, job: Job) -> None:
        self._queue.add(job)
        self._arrived.set()

    async def _work(self) -> None:
        while True:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            self._embed(self._queue.take(BATCH_TOKENS))
            await asyncio.sleep(0)  # read what came meanwhile

    def _embed(self, batch: list[tuple[Job, list[int]]]) -> None:
        if not batch:
            return  # all that waited was cancelled
        vectors = self._model.embed([text for _, text in batch]).numpy()
        for (job, _), vector in zip(batch, vectors, strict=True):
            job.vectors += vector.tobytes()
            if len(job.vectors) == len(job.texts) * vector.nbytes:
                job.client.answer(job)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: EmbedderServer) -> None:
        self._server = server
        self._decoder: FrameDecoder[ToEmbedder] = FrameDecoder(ToEmbedder)
        self._jobs: dict[int, Job] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send(Ready(self._server.info))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                if isinstance(message, Cancel):
                    self._cancel(message.request_id)
                else:
                    self._jobs[message.request_id] = job = Job(self, message)
                    self._server.add(job)
        except msgspec.MsgspecError as error:
            log.error("a client sent what is no message (%s); its connection is closed", error)
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for request_id in list(self._jobs):
            self._cancel(request_id)

    def answer(self, job: Job) -> None:
        if self._jobs.pop(job.request_id, None) is not None:
            self._send(Embedded(job.request_id, bytes(job.vectors)))

    def _cancel(self, request_id: int) -> None:
        job = self._jobs.pop(request_id, None)
        if job is not None:  # else it was answered in the meantime
            job.cancelled = True

    def _send(self, message: msgspec.Struct) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides when we end
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    config, lifeline, listener = inherited(EmbedderConfig)
    gc.disable()  # importing torch makes a million objects that stay
    try:
        import torch

        from ..models.embedding_location import resolve_embedding_model
        from ..models.embedding_model import EmbeddingModel

        torch.set_num_threads(1)
        folder = resolve_embedding_model(config.model)
        model = EmbeddingModel(folder)
    except ModelLoadError as error:
        report_failure(error.message, listener)
        return 1
    except Exception as error:
        log.exception("loading %s failed", config.model)
        report_failure(f"{config.model} cannot be loaded: {type(error).__name__}: {error}", listener)
        return 1
    gc.freeze()
    gc.enable()
    try:
        asyncio.run(EmbedderServer(model, str(folder)).run(listener, lifeline))
    except Exception:
        log.exception("the embedder failed and stops; it is started again for what waits")
        return 1
    remove_address(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
