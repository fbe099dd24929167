"""POST /v1/chat/completions."""

import uuid

import msgspec
from aiohttp import web

from ...scheduler.outputs import Chunk
from ..answer import AnswerReader, Layout, message_of
from ..answer_layout import constrained, layout_of
from ..answer_stream import AnswerStream
from ..chat import last_question, template_messages, template_variables
from ..compat import FieldPolicy
from ..context import CONTEXT
from ..controls import cache_controls
from ..edge import caller_of
from ..logprobs import ChatLogprobs
from ..openai_types import ChatRequest, convert, decode_object
from ..reply import StreamForm, body, reply_headers, stream
from ..request_body import read_body
from ..service import Generation, Job, Prompt
from ..sse import chat_format
from ..tools import Tools


async def chat_completions(request: web.Request) -> web.StreamResponse:
    context, caller = request.app[CONTEXT], caller_of(request)
    policy = FieldPolicy(context.settings.unsupported)
    asked = convert(policy.chat(decode_object(await read_body(request))), ChatRequest)
    served = context.backend.find(asked.model)
    controls = cache_controls(request.headers, asked.penstock)
    await context.backend.ready()
    params, nothing = asked.sampling_params(context.backend.defaults.sampling)
    tokenizer = context.backend.tokenizer
    tools = Tools.of(asked, tokenizer, policy)
    messages = template_messages(asked.messages, tokenizer=tokenizer, policy=policy)
    variables = template_variables(asked.chat_template_kwargs)
    if tools is not None:
        variables = {**variables, "tools": tools.shown}
    text = tokenizer.render_chat(messages, **variables)
    layout = layout_of(text, tools, tokenizer.thinking)
    job = Job(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        tenant=caller.tenant,
        # The template writes the special tokens itself.
        prompts=(Prompt(text=text, add_special_tokens=False),),
        params=msgspec.structs.replace(constrained(params, layout, tools, tokenizer), adapter=served.adapter),
        urgency=asked.urgency,
        question=last_question(messages),
        draft=asked.prediction.text if asked.prediction else None,
        controls=controls,
        nothing=nothing,
        default_limit=context.backend.defaults.max_tokens,
    )
    generation = await context.service.start(job)
    headers = reply_headers(generation, model=served.name, dropped=policy.dropped)
    logprobs = ChatLogprobs(tokenizer) if asked.logprobs else None
    head = context.reply_head(job.id, served)
    if asked.stream:
        form = _form(head, layout, logprobs, include_usage=asked.include_usage)
        return await stream(request, generation, form, headers, write_timeout=context.settings.write_timeout)
    return await body(request, generation, lambda whole: _body(head, whole, layout, logprobs), headers)


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
