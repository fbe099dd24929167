"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

import uuid
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from ..answer import AnswerReader, Layout
from ..answer_writer import WrittenAnswer, finish_of
from ..answering import Asked, Dialect, Ready, answer
from ..anthropic.body import Head, message_body
from ..anthropic.to_chat import check_headers, to_chat, to_counted_chat
from ..anthropic.writer import MessageWriter
from ..backend import Served
from ..chat_job import chat_job, prompt_tokens
from ..compat import FieldPolicy
from ..controls import CacheControls
from ..json_reply import json_response
from ..openai_types import ChatRequest, convert
from ..relayed import relay
from ..reply import LocalAnswer, reply_headers
from ..routing.target import RemoteTarget
from ..service import Generation
from ..upstreams.anthropic_api import COUNT_TOKENS_API, MESSAGES_API
from ..upstreams.openai_apis import CHAT_SPOKEN
from ..upstreams.remote_api import translated
from ..upstreams.translation import Telling


async def messages(request: web.Request) -> web.StreamResponse:
    return await answer(request, MESSAGES)


async def _local(given: Asked, served: Served) -> LocalAnswer:
    context, caller, local = given.context, given.caller, given.context.local_of(served)
    policy = FieldPolicy(context.settings.unsupported)
    check_headers(given.request.headers, policy)
    translated = to_chat(given.fields, policy, for_engine=True)
    with translated.own_words():
        asked = convert(translated.fields, ChatRequest)
        job, layout = await chat_job(
            asked,
            id=f"msg_{uuid.uuid4().hex}",
            admission=given.admission,
            controls=given.controls,
            backend=local.backend,
            served=served,
            policy=policy,
        )
        # Clients ask for tens of thousands of tokens by default; the stop_reason says where the context ended.
        job = msgspec.structs.replace(given.attempted(job), cut_limit=True)
        generation = await local.service.start(job, given.record)
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


def _body(head: Head, generation: Generation, layout: Layout) -> dict[str, object]:
    (chunk,) = generation.transcript.as_chunks()
    reader = AnswerReader(layout)
    parts = reader.read(chunk.text) + reader.end()
    return message_body(head, parts, finish_of(chunk, reader), generation.transcript.usage)


def _to_chat(given: Asked) -> dict[str, Any]:
    return to_chat(given.fields, FieldPolicy(given.context.settings.unsupported), for_engine=False).fields


def _telling(given: Asked, target: RemoteTarget) -> Telling:
    limit = given.fields.get("max_tokens")
    head = Head(f"msg_{uuid.uuid4().hex}", target.model, limit if isinstance(limit, int) else None)
    return Telling(MessageWriter(head, request_id=given.caller.request_id), partial(message_body, head))


BY_CHAT = translated("messages", CHAT_SPOKEN, to_chat=_to_chat, telling=_telling)
MESSAGES = Dialect(
    local=_local,
    remote=lambda given, target: relay(
        given, target, lambda upstream: MESSAGES_API if upstream.format == "anthropic" else BY_CHAT
    ),
)


async def count_tokens(request: web.Request) -> web.StreamResponse:
    return await answer(request, COUNT)


async def _count(given: Asked, served: Served) -> Ready:
    context, local = given.context, given.context.local_of(served)
    policy = FieldPolicy(context.settings.unsupported)
    check_headers(given.request.headers, policy)
    translated = to_counted_chat(given.fields, policy)
    with translated.own_words():
        job, _ = await chat_job(
            convert(translated.fields, ChatRequest),
            id=given.caller.request_id,
            admission=given.admission,
            controls=CacheControls(),
            backend=local.backend,
            served=served,
            policy=policy,
        )
    return Ready(json_response({"input_tokens": await prompt_tokens(job, local.backend)}))


COUNT = Dialect(
    generates=False,
    operation=None,
    local=_count,
    remote=lambda given, target: relay(
        given, target, lambda upstream: COUNT_TOKENS_API if upstream.format == "anthropic" else None
    ),
)
