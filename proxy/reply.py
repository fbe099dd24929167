"""A generation on its way to the client: as a stream with backpressure, or as one body."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import orjson
from aiohttp import web

from ..errors import PenstockError
from ..scheduler.outputs import Chunk
from .edge import caller_of
from .errors import JSON, internal_error
from .service import Generation
from .usage import Usage

log = logging.getLogger(__name__)

MODEL = "x-penstock-model"
DROPPED = "x-penstock-dropped"
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back otherwise
}


class StreamForm(Protocol):
    """How a stream is written: StreamFormat for text, AnswerStream for what has thoughts or calls in it, WrittenAnswer
    for other APIs than OpenAI's older two."""

    def chunks(self, batch: list[Chunk]) -> bytes: ...
    def end(self, usage: Usage) -> bytes: ...
    def failed(self, error: PenstockError) -> bytes: ...


class LocalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A `Started` (answering.py) of the local engine.

    Attributes:
        form: None for a reply in one body, which `build` makes.
    """

    request: web.Request
    generation: Generation
    form: StreamForm | None
    build: Callable[[Generation], dict[str, object]]
    headers: dict[str, str]
    write_timeout: float

    async def send(self) -> web.StreamResponse:
        if self.form is None:
            return await body(self.request, self.generation, self.build, self.headers)
        return await stream(
            self.request, self.generation, self.form, self.headers, write_timeout=self.write_timeout
        )


def reply_headers(generation: Generation, *, model: str, dropped: list[str]) -> dict[str, str]:
    return {**generation.provenance.headers(), **model_headers(model, dropped)}


def model_headers(model: str, dropped: list[str]) -> dict[str, str]:
    headers = {MODEL: model}
    if dropped:
        headers[DROPPED] = ",".join(name for name in dropped if name.isprintable() and name.isascii())
    return headers


async def stream(
    request: web.Request,
    generation: Generation,
    form: StreamForm,
    headers: dict[str, str],
    *,
    write_timeout: float,
) -> web.StreamResponse:
    """Sends chunks as they come, at the reader's pace; ends with [DONE], or with an error event and nothing
    after it.

    Leaving it in any way (client gone, reader stalled for `write_timeout` seconds) aborts the generation.
    """
    response = web.StreamResponse(headers={**STREAM_HEADERS, **headers})
    try:
        await response.prepare(request)
        async for batch in generation:
            data = form.chunks(batch)
            if generation.transcript.finished:
                data += form.end(generation.transcript.usage)
            if data:
                await write(request, response, data, write_timeout)
    except PenstockError as error:
        log.log(error.log_level, "%s broke off: %s", caller_of(request).request_id, error.message)
        await write(request, response, form.failed(error), write_timeout)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        identity = caller_of(request).request_id
        log.exception("%s broke off", identity)
        await write(request, response, form.failed(internal_error(identity)), write_timeout)
    finally:
        await generation.aclose()
    return response


async def body(
    request: web.Request,
    generation: Generation,
    build: Callable[[Generation], dict[str, object]],
    headers: dict[str, str],
) -> web.Response:
    """Waits for the whole generation; a client that leaves meanwhile aborts it."""
    try:
        async for _ in generation:
            pass
    finally:
        await generation.aclose()
    content = orjson.dumps(build(generation))
    spent = 1000 * (time.perf_counter() - caller_of(request).arrived)
    headers["Server-Timing"] = f"total;dur={spent:.3f}"
    return web.Response(body=content, content_type=JSON, headers=headers)


async def write(request: web.Request, response: web.StreamResponse, data: bytes, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await response.write(data)
    except TimeoutError:
        log.warning("%s: the client has not read for %g s; closing.", caller_of(request).request_id, timeout)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client stopped reading") from None
