"""A generation on its way to the client: as a stream with backpressure, or as one body."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

import msgspec
import orjson
from aiohttp import web

from ..errors import PenstockError
from ..scheduler.outputs import Chunk
from .cascade.answer_text import answer_text
from .errors import JSON
from .event_stream import send_events
from .observe.recorder import record_of
from .service import Generation
from .usage import Usage

MODEL = "x-penstock-model"
DROPPED = "x-penstock-dropped"
# Most clients read 8 KiB of a header, or of all of them, and no more.
_LONGEST_HEADER = 2048


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

    async def whole(self) -> bytes:
        return await _whole(self.generation, self.build)

    @property
    def said(self) -> str | None:
        if not self.generation.transcript.finished:
            return None
        return answer_text(orjson.dumps(self.build(self.generation)))


def reply_headers(generation: Generation, *, model: str, dropped: list[str]) -> dict[str, str]:
    return {**generation.provenance.headers(), **model_headers(model, dropped)}


def model_headers(model: str, dropped: list[str]) -> dict[str, str]:
    headers = {MODEL: model}
    if dropped:
        names = ",".join(name for name in dropped if name.isprintable() and name.isascii())
        headers[DROPPED] = names if len(names) <= _LONGEST_HEADER else names[:_LONGEST_HEADER] + "..."
    return headers


async def stream(
    request: web.Request,
    generation: Generation,
    form: StreamForm,
    headers: dict[str, str],
    *,
    write_timeout: float,
) -> web.StreamResponse:
    """Sends chunks as they come; ends with [DONE], or with an error event and nothing after it.

    Leaving it in any way (client gone, reader stalled for `write_timeout` seconds) aborts the generation.
    """

    async def events() -> AsyncGenerator[bytes, None]:
        async for batch in generation:
            data = form.chunks(batch)
            if generation.transcript.finished:
                data += form.end(generation.transcript.usage)
            if data:
                yield data

    try:
        async with aclosing(events()) as data:
            return await send_events(request, headers, data, failed=form.failed, write_timeout=write_timeout)
    finally:
        await generation.aclose()


async def body(
    request: web.Request,
    generation: Generation,
    build: Callable[[Generation], dict[str, object]],
    headers: dict[str, str],
) -> web.Response:
    """Waits for the whole generation; a client that leaves meanwhile aborts it."""
    content = await _whole(generation, build)
    headers["Server-Timing"] = f"total;dur={1000 * record_of(request).duration:.3f}"
    return web.Response(body=content, content_type=JSON, headers=headers)


async def _whole(generation: Generation, build: Callable[[Generation], dict[str, object]]) -> bytes:
    try:
        async for _ in generation:
            pass
    finally:
        await generation.aclose()
    return orjson.dumps(build(generation))
