"""POST /v1/chat/completions."""

import time
import uuid
from functools import partial

from aiohttp import web

from ...scheduler.outputs import Chunk
from ..answer import AnswerReader, Layout, message_of
from ..answer_stream import AnswerStream
from ..answering import Asked, Dialect, answer
from ..backend import Served
from ..chat_job import chat_job
from ..chat_writer import ChatWriter, chat_body
from ..compat import FieldPolicy
from ..logprobs import ChatLogprobs
from ..openai_types import ChatRequest, convert
from ..relayed import relay
from ..reply import LocalAnswer, StreamForm, reply_headers
from ..routing.target import RemoteTarget
from ..service import Generation
from ..sse import chat_format
from ..upstreams.anthropic_api import MESSAGES_SPOKEN
from ..upstreams.openai_apis import CHAT_API
from ..upstreams.remote_api import translated, wants_usage
from ..upstreams.translation import Telling


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await answer(request, CHAT)


async def _local(given: Asked, served: Served) -> LocalAnswer:
    context, local = given.context, given.context.local_of(served)
    policy = FieldPolicy(context.settings.unsupported)
    asked = convert(policy.chat(given.fields), ChatRequest)
    job, layout = await chat_job(
        asked,
        id=f"chatcmpl-{uuid.uuid4().hex}",
        admission=given.admission,
        controls=given.controls,
        backend=local.backend,
        served=served,
        policy=policy,
    )
    generation = await local.service.start(given.attempted(job), given.record)
    headers = reply_headers(generation, model=served.name, dropped=policy.dropped)
    logprobs = ChatLogprobs(local.backend.tokenizer) if asked.logprobs else None
    head = context.reply_head(job.id, served)
    form = None
    if given.stream:
        form = _form(head, layout, logprobs, include_usage=asked.include_usage)
    return LocalAnswer(
        request=given.request,
        generation=generation,
        form=form,
        build=lambda whole: _body(head, whole, layout, logprobs),
        headers=headers,
        write_timeout=context.settings.write_timeout,
    )


def _form(
    head: dict[str, object], layout: Layout, logprobs: ChatLogprobs | None, *, include_usage: bool
) -> StreamForm:
    if layout.is_plain:
        return chat_format(head, logprobs=logprobs.encode if logprobs else None, include_usage=include_usage)
    return AnswerStream(head, layout, logprobs=logprobs.of if logprobs else None, include_usage=include_usage)


def _body(
    head: dict[str, object], generation: Generation, layout: Layout, logprobs: ChatLogprobs | None
) -> dict[str, object]:
    return {
        **head,
        "object": "chat.completion",
        "choices": [_choice(chunk, layout, logprobs) for chunk in generation.transcript.as_chunks()],
        "usage": generation.transcript.usage.as_dict(),
    }


def _choice(chunk: Chunk, layout: Layout, logprobs: ChatLogprobs | None) -> dict[str, object]:
    reader = AnswerReader(layout)
    message = message_of(reader.read(chunk.text) + reader.end())
    return {
        "index": chunk.index,
        "message": message,
        "logprobs": None if logprobs is None else logprobs.of(chunk),
        "finish_reason": reader.reason(chunk.finish_reason),
    }


def _telling(given: Asked, target: RemoteTarget) -> Telling:
    head: dict[str, object] = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": target.model,
    }
    return Telling(ChatWriter(head, include_usage=wants_usage(given.fields)), partial(chat_body, head))


BY_MESSAGES = translated("chat", MESSAGES_SPOKEN, to_chat=lambda given: given.fields, telling=_telling)
CHAT = Dialect(
    local=_local,
    remote=lambda given, target: relay(
        given, target, lambda upstream: CHAT_API if upstream.format == "openai" else BY_MESSAGES
    ),
)
