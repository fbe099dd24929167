"""POST /v1/responses. Nothing is stored, and so there is nothing to get or to delete."""

import time
import uuid
from typing import Any

from aiohttp import web

from ...errors import NotStoredError, UnsupportedParameterError
from ...models.tokenizer import Tokenizer
from ...scheduler.outputs import Chunk
from ..answer import AnswerReader, Layout
from ..answer_writer import WrittenAnswer, finish_of
from ..answering import Asked, Dialect, Started, answer
from ..backend import Served
from ..chat_job import chat_job, prompt_tokens
from ..compat import FieldPolicy
from ..context import CONTEXT
from ..controls import CacheControls
from ..edge import caller_of
from ..json_reply import json_response
from ..logprobs import ChatLogprobs
from ..openai_types import ChatRequest, convert, decode_object
from ..reply import LocalAnswer, StreamForm, reply_headers
from ..request_body import read_body
from ..responses.request import LOGPROBS, ResponsesRequest, read_request
from ..responses.response import head_of, response_of
from ..responses.to_chat import to_chat
from ..responses.writer import ResponseWriter
from ..routing.target import Target
from ..service import Generation


async def create_response(request: web.Request) -> web.StreamResponse:
    return await answer(request, RESPONSES)


async def _local(given: Asked, served: Served) -> LocalAnswer:
    context = given.context
    policy = FieldPolicy(context.settings.unsupported)
    asked = read_request(given.fields, policy)
    as_chat = to_chat(asked, policy)
    with as_chat.names.in_errors():
        job, layout = await chat_job(
            convert(policy.chat(as_chat.fields), ChatRequest),
            id=f"resp_{uuid.uuid4().hex}",
            tenant=given.caller.tenant,
            controls=given.controls,
            backend=context.backend,
            served=served,
            policy=policy,
        )
        logprobs = _logprobs(asked, layout, context.backend.tokenizer, policy)
        generation = await context.service.start(job)
    head = head_of(
        asked,
        id=job.id,
        created=int(time.time()),
        model=served.name,
        temperature=job.params.temperature,
        top_p=job.params.top_p,
    )
    dropped = [as_chat.names.told(name) for name in policy.dropped]
    return LocalAnswer(
        request=given.request,
        generation=generation,
        form=_form(head, layout, logprobs) if given.stream else None,
        build=lambda whole: _body(head, whole, layout, logprobs),
        headers=reply_headers(generation, model=served.name, dropped=dropped),
        write_timeout=context.settings.write_timeout,
    )


async def _remote(given: Asked, target: Target) -> Started:
    raise UnsupportedParameterError(f"{target.name} is not asked in the Responses API yet.", param="model")


async def count_input_tokens(request: web.Request) -> web.Response:
    """POST /v1/responses/input_tokens. By the local model, whatever a route would choose."""
    context, caller = request.app[CONTEXT], caller_of(request)
    policy = FieldPolicy(context.settings.unsupported)
    fields = decode_object(await read_body(request))
    as_chat = to_chat(read_request({"model": context.backend.name, **fields}, policy), policy)
    with as_chat.names.in_errors():
        asked = convert(policy.chat(as_chat.fields), ChatRequest)
        job, _ = await chat_job(
            asked,
            id=caller.request_id,
            tenant=caller.tenant,
            controls=CacheControls(),
            backend=context.backend,
            served=context.backend.find(asked.model),
            policy=policy,
        )
    counted = await prompt_tokens(job, context.backend)
    return json_response({"object": "response.input_tokens", "input_tokens": counted})


async def not_stored(request: web.Request) -> web.StreamResponse:
    raise NotStoredError(
        f"There is no response {request.match_info['id']!r}: nothing is stored here. The reply to POST /v1/responses was "
        "all of it; for the next turn, send its output back as part of the input."
    )


def _logprobs(
    asked: ResponsesRequest, layout: Layout, tokenizer: Tokenizer, policy: FieldPolicy
) -> ChatLogprobs | None:
    if not asked.logprobs:
        return None
    if layout.is_plain:
        return ChatLogprobs(tokenizer)
    policy.refuse_or_drop(
        f"include.{LOGPROBS}",
        f"include has {LOGPROBS!r}, but this answer may hold thoughts or calls, whose tokens are not told apart "
        "from those of the text; /v1/chat/completions gives the log-probabilities of all.",
    )
    return None


def _form(head: dict[str, Any], layout: Layout, logprobs: ChatLogprobs | None) -> StreamForm:
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


RESPONSES = Dialect(local=_local, remote=_remote)
