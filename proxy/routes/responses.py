"""POST /v1/responses. Nothing is stored, and so there is nothing to get or to delete."""

import time
import uuid
from typing import Any

from aiohttp import web

from ...errors import NotStoredError
from ...models.tokenizer import Tokenizer
from ...scheduler.outputs import Chunk
from ...tables import Upstream
from ..answer import AnswerReader, Layout, Part
from ..answer_writer import Finish, WrittenAnswer, finish_of
from ..answering import Asked, Dialect, Ready, answer
from ..backend import Served
from ..chat_job import chat_job, prompt_tokens
from ..compat import FieldPolicy
from ..controls import CacheControls
from ..json_reply import json_response
from ..logprobs import ChatLogprobs
from ..openai_types import ChatRequest, convert
from ..relayed import relay
from ..reply import LocalAnswer, StreamForm, reply_headers
from ..responses.request import LOGPROBS, ResponsesRequest, read_request
from ..responses.response import head_of, response_of
from ..responses.to_chat import to_chat
from ..responses.writer import ResponseWriter
from ..routing.target import RemoteTarget
from ..service import Generation
from ..upstreams.anthropic_api import MESSAGES_SPOKEN
from ..upstreams.openai_apis import CHAT_SPOKEN, INPUT_TOKENS_API, RESPONSES_API
from ..upstreams.remote_api import RemoteApi, translated
from ..upstreams.translation import Telling
from ..usage import Usage


async def create_response(request: web.Request) -> web.StreamResponse:
    return await answer(request, RESPONSES)


async def _local(given: Asked, served: Served) -> LocalAnswer:
    context, local = given.context, given.context.local_of(served)
    policy = FieldPolicy(context.settings.unsupported)
    asked = read_request(given.fields, policy)
    as_chat = to_chat(asked, policy)
    with as_chat.names.in_errors():
        job, layout = await chat_job(
            convert(policy.chat(as_chat.fields), ChatRequest),
            id=f"resp_{uuid.uuid4().hex}",
            admission=given.admission,
            controls=given.controls,
            backend=local.backend,
            served=served,
            policy=policy,
        )
        logprobs = _logprobs(asked, layout, local.backend.tokenizer, policy)
        generation = await local.service.start(given.attempted(job), given.record)
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


async def count_input_tokens(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses/input_tokens."""
    return await answer(request, COUNT)


async def _count(given: Asked, served: Served) -> Ready:
    context, local = given.context, given.context.local_of(served)
    policy = FieldPolicy(context.settings.unsupported)
    as_chat = to_chat(read_request({**given.fields, "model": served.name}, policy), policy)
    with as_chat.names.in_errors():
        job, _ = await chat_job(
            convert(policy.chat(as_chat.fields), ChatRequest),
            id=given.caller.request_id,
            admission=given.admission,
            controls=CacheControls(),
            backend=local.backend,
            served=served,
            policy=policy,
        )
    counted = await prompt_tokens(job, local.backend)
    return Ready(json_response({"object": "response.input_tokens", "input_tokens": counted}))


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


def _to_chat(given: Asked) -> dict[str, Any]:
    policy = FieldPolicy(given.context.settings.unsupported)
    return to_chat(read_request(given.fields, policy), policy).fields


def _telling(given: Asked, target: RemoteTarget) -> Telling:
    asked = read_request(given.fields, FieldPolicy("drop"))
    head = head_of(
        asked,
        id=f"resp_{uuid.uuid4().hex}",
        created=int(time.time()),
        model=target.model,
        temperature=asked.temperature,
        top_p=asked.top_p,
    )

    def body(parts: list[Part], finish: Finish, usage: Usage) -> dict[str, object]:
        return response_of(head, parts, finish, usage, now=int(time.time()), logprobs=None)

    return Telling(ResponseWriter(head), body)


def _api(upstream: Upstream) -> RemoteApi:
    if upstream.format == "anthropic":
        return BY_MESSAGES
    return RESPONSES_API if upstream.responses else BY_CHAT


BY_CHAT = translated("responses", CHAT_SPOKEN, to_chat=_to_chat, telling=_telling)
BY_MESSAGES = translated("responses", MESSAGES_SPOKEN, to_chat=_to_chat, telling=_telling)
RESPONSES = Dialect(local=_local, remote=lambda given, target: relay(given, target, _api))
COUNT = Dialect(
    generates=False,
    operation=None,
    default_model=lambda context: context.backend.name,
    local=_count,
    remote=lambda given, target: relay(
        given, target, lambda upstream: INPUT_TOKENS_API if upstream.responses else None
    ),
)
