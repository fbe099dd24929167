"""POST /v1/chat/completions."""

import uuid

import msgspec
from aiohttp import web

from ..chat import template_messages, template_variables
from ..compat import FieldPolicy
from ..context import CONTEXT
from ..controls import cache_controls
from ..edge import caller_of
from ..logprobs import ChatLogprobs
from ..openai_types import ChatRequest, convert, decode_object
from ..reply import body, reply_headers, stream
from ..request_body import read_body
from ..service import Generation, Job, Prompt
from ..sse import chat_format


async def chat_completions(request: web.Request) -> web.StreamResponse:
    context, caller = request.app[CONTEXT], caller_of(request)
    policy = FieldPolicy(context.settings.unsupported)
    asked = convert(policy.chat(decode_object(await read_body(request))), ChatRequest)
    served = context.backend.find(asked.model)
    controls = cache_controls(request.headers, asked.penstock)
    await context.backend.ready()
    params, nothing = asked.sampling_params(context.backend.defaults.sampling)
    tokenizer = context.backend.tokenizer
    messages = template_messages(asked.messages, template=tokenizer.chat_template, policy=policy)
    text = tokenizer.render_chat(messages, **template_variables(asked.chat_template_kwargs))
    job = Job(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        tenant=caller.tenant,
        # The template writes the special tokens itself.
        prompts=(Prompt(text=text, add_special_tokens=False),),
        params=msgspec.structs.replace(params, adapter=served.adapter),
        urgency=asked.urgency,
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
        form = chat_format(
            head, logprobs=logprobs.encode if logprobs else None, include_usage=asked.include_usage
        )
        return await stream(request, generation, form, headers, write_timeout=context.settings.write_timeout)
    return await body(request, generation, lambda whole: _body(head, whole, logprobs), headers)


def _body(
    head: dict[str, object], generation: Generation, logprobs: ChatLogprobs | None
) -> dict[str, object]:
    return {
        **head,
        "object": "chat.completion",
        "choices": [
            {
                "index": chunk.index,
                "message": {"role": "assistant", "content": chunk.text, "refusal": None},
                "logprobs": None if logprobs is None else logprobs.of(chunk),
                "finish_reason": chunk.finish_reason,
            }
            for chunk in generation.transcript.as_chunks()
        ],
        "usage": generation.transcript.usage.as_dict(),
    }
