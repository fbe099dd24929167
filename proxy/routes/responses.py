"""POST /v1/responses. Nothing is stored, and so there is nothing to get or to delete."""

import time
import uuid
from typing import Any

from aiohttp import web

from ...errors import NotStoredError
from ...scheduler.outputs import Chunk
from ..answer import AnswerReader, Layout
from ..answer_writer import WrittenAnswer, finish_of
from ..chat_job import chat_job
from ..compat import FieldPolicy
from ..context import CONTEXT
from ..controls import cache_controls
from ..edge import caller_of
from ..logprobs import ChatLogprobs
from ..openai_types import ChatRequest, convert, decode_object
from ..reply import StreamForm, body, reply_headers, stream
from ..request_body import read_body
from ..responses.chat_request import chat_form
from ..responses.request import LOGPROBS, read_request
from ..responses.response import head_of, response_of
from ..responses.writer import ResponseWriter
from ..service import Generation


async def create_response(request: web.Request) -> web.StreamResponse:
    context, caller = request.app[CONTEXT], caller_of(request)
    policy = FieldPolicy(context.settings.unsupported)
    asked = read_request(decode_object(await read_body(request)), policy)
    form = chat_form(asked, policy)
    controls = cache_controls(request.headers, asked.penstock)
    with form.names.in_errors():
        job, layout = await chat_job(
            convert(policy.chat(form.fields), ChatRequest),
            id=f"resp_{uuid.uuid4().hex}",
            tenant=caller.tenant,
            controls=controls,
            backend=context.backend,
            policy=policy,
        )
        logprobs = None
        if asked.logprobs and layout.is_plain:
            logprobs = ChatLogprobs(context.backend.tokenizer)
        elif asked.logprobs:
            policy.refuse_or_drop(
                f"include.{LOGPROBS}",
                f"include has {LOGPROBS!r}, but this answer may hold thoughts or calls, whose tokens are not told apart "
                "from those of the text; /v1/chat/completions gives the log-probabilities of all.",
            )
        generation = await context.service.start(job)
    served = context.backend.find(asked.model)
    dropped = [form.names.told(name) for name in policy.dropped]
    headers = reply_headers(generation, model=served.name, dropped=dropped)
    head = head_of(
        asked,
        id=job.id,
        created=int(time.time()),
        model=served.name,
        temperature=job.params.temperature,
        top_p=job.params.top_p,
    )
    if asked.stream:
        return await stream(
            request,
            generation,
            _stream(head, layout, logprobs),
            headers,
            write_timeout=context.settings.write_timeout,
        )
    return await body(request, generation, lambda whole: _body(head, whole, layout, logprobs), headers)


async def not_stored(request: web.Request) -> web.StreamResponse:
    raise NotStoredError(
        f"There is no response {request.match_info['id']!r}: nothing is stored here. The reply to POST /v1/responses was "
        "all of it; for the next turn, send its output back as part of the input."
    )


def _stream(head: dict[str, Any], layout: Layout, logprobs: ChatLogprobs | None) -> StreamForm:
    writer = ResponseWriter(head)
    return WrittenAnswer(layout, writer) if logprobs is None else _WithLogprobs(layout, writer, logprobs)


class _WithLogprobs(WrittenAnswer):
    def __init__(self, layout: Layout, writer: ResponseWriter, logprobs: ChatLogprobs) -> None:
        super().__init__(layout, writer)
        self._noted = writer
        self._logprobs = logprobs

    def chunks(self, batch: list[Chunk]) -> bytes:
        for chunk in batch:
            self._noted.note_logprobs(self._logprobs.entries(chunk))
        return super().chunks(batch)


def _body(
    head: dict[str, Any], generation: Generation, layout: Layout, logprobs: ChatLogprobs | None
) -> dict[str, object]:
    (chunk,) = generation.transcript.as_chunks()
    reader = AnswerReader(layout)
    parts = reader.read(chunk.text) + reader.end()
    return response_of(
        head,
        parts,
        finish_of(chunk, reader),
        generation.transcript.usage,
        now=int(time.time()),
        logprobs=None if logprobs is None else logprobs.entries(chunk),
    )
