"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

import uuid

import msgspec
from aiohttp import web

from ...errors import UnsupportedParameterError
from ..answer import AnswerReader, Layout
from ..answer_writer import WrittenAnswer, finish_of
from ..answering import Asked, Dialect, Started, answer
from ..anthropic.body import Head, message_body
from ..anthropic.to_chat import check_headers, to_chat, to_counted_chat
from ..anthropic.writer import MessageWriter
from ..backend import Served
from ..chat_job import chat_job, prompt_tokens
from ..compat import FieldPolicy
from ..context import CONTEXT
from ..controls import CacheControls
from ..edge import caller_of
from ..json_reply import json_response
from ..openai_types import ChatRequest, convert, decode_object
from ..reply import LocalAnswer, reply_headers
from ..request_body import read_body
from ..routing.target import Target
from ..service import Generation


async def messages(request: web.Request) -> web.StreamResponse:
    return await answer(request, MESSAGES)


async def _local(given: Asked, served: Served) -> LocalAnswer:
    context, caller = given.context, given.caller
    policy = FieldPolicy(context.settings.unsupported)
    check_headers(given.request.headers, policy)
    translated = to_chat(given.fields, policy, for_engine=True)
    with translated.own_words():
        asked = convert(translated.fields, ChatRequest)
        job, layout = await chat_job(
            asked,
            id=f"msg_{uuid.uuid4().hex}",
            tenant=caller.tenant,
            controls=given.controls,
            backend=context.backend,
            served=served,
            policy=policy,
        )
        # Clients ask for tens of thousands of tokens by default; the stop_reason says where the context ended.
        generation = await context.service.start(msgspec.structs.replace(job, cut_limit=True))
    head = Head(job.id, served.name, asked.max_tokens, translated.shows_thoughts)
    form = None
    if given.stream:
        writer = MessageWriter(head, request_id=caller.request_id, usage=generation.transcript.usage)
        form = WrittenAnswer(layout, writer)
    return LocalAnswer(
        request=given.request,
        generation=generation,
        form=form,
        build=lambda whole: _body(head, whole, layout),
        headers=reply_headers(generation, model=served.name, dropped=policy.dropped),
        write_timeout=context.settings.write_timeout,
    )


async def _remote(given: Asked, target: Target) -> Started:
    raise UnsupportedParameterError(f"{target.name} is not asked in Anthropic's API yet.", param="model")


def _body(head: Head, generation: Generation, layout: Layout) -> dict[str, object]:
    (chunk,) = generation.transcript.as_chunks()
    reader = AnswerReader(layout)
    parts = reader.read(chunk.text) + reader.end()
    return message_body(head, parts, finish_of(chunk, reader), generation.transcript.usage)


MESSAGES = Dialect(local=_local, remote=_remote)


async def count_tokens(request: web.Request) -> web.Response:
    """By the local model, whatever a route would choose."""
    context, caller = request.app[CONTEXT], caller_of(request)
    policy = FieldPolicy(context.settings.unsupported)
    check_headers(request.headers, policy)
    translated = to_counted_chat(decode_object(await read_body(request)), policy)
    with translated.own_words():
        asked = convert(translated.fields, ChatRequest)
        job, _ = await chat_job(
            asked,
            id=caller.request_id,
            tenant=caller.tenant,
            controls=CacheControls(),
            backend=context.backend,
            served=context.backend.find(asked.model),
            policy=policy,
        )
    return json_response({"input_tokens": await prompt_tokens(job, context.backend)})
