"""POST /v1/completions."""

import uuid

import msgspec
from aiohttp import web

from ...cache import WholePrompt
from ...errors import InvalidRequestError
from ..answering import Asked, Dialect, answer
from ..backend import Served
from ..compat import FieldPolicy
from ..logprobs import CompletionLogprobs
from ..openai_types import COMPLETION_MAX_TOKENS, CompletionRequest, convert
from ..relayed import relay
from ..reply import LocalAnswer, reply_headers
from ..service import Generation, Job, Prompt
from ..sse import completion_format
from ..upstreams.openai_apis import COMPLETIONS_API

MAX_PROMPTS = 2048


async def completions(request: web.Request) -> web.StreamResponse:
    return await answer(request, COMPLETIONS)


async def _local(given: Asked, served: Served) -> LocalAnswer:
    context, local = given.context, given.context.local_of(served)
    policy = FieldPolicy(context.settings.unsupported)
    asked = convert(policy.completions(given.fields), CompletionRequest)
    await local.backend.ready()
    params, nothing = asked.sampling_params(local.backend.defaults.sampling)
    prompts = _prompts(asked)
    text = prompts[0].text if len(prompts) == 1 else None
    job = Job(
        id=f"cmpl-{uuid.uuid4().hex}",
        admission=given.admission,
        prompts=prompts,
        params=msgspec.structs.replace(params, adapter=served.adapter),
        urgency=asked.urgency,
        question=asked.prompt if isinstance(asked.prompt, str) else None,
        controls=given.controls,
        nothing=nothing,
        default_limit=COMPLETION_MAX_TOKENS,
        whole=None if text is None else WholePrompt(served.name, text=text),
    )
    generation = await local.service.start(given.attempted(job), given.record)
    headers = reply_headers(generation, model=served.name, dropped=policy.dropped)
    logprobs = None if asked.logprobs is None else CompletionLogprobs(local.backend.tokenizer)
    head = context.reply_head(job.id, served)
    form = None
    if given.stream:
        form = completion_format(
            head, logprobs=logprobs.encode if logprobs else None, include_usage=asked.include_usage
        )
    return LocalAnswer(
        request=given.request,
        generation=generation,
        form=form,
        build=lambda whole: _body(head, whole, logprobs),
        headers=headers,
        write_timeout=context.settings.write_timeout,
    )


def _prompts(asked: CompletionRequest) -> tuple[Prompt, ...]:
    """One prompt per group of choices, from a text, texts, token ids, or lists of token ids."""
    given = asked.prompt
    if isinstance(given, str):
        return (Prompt(text=given),)
    if len(given) > MAX_PROMPTS and not isinstance(given[0], int):
        raise InvalidRequestError(
            f"prompt holds {len(given)} prompts; at most {MAX_PROMPTS} fit one request. Send several.",
            param="prompt",
        )
    texts = [item for item in given if isinstance(item, str)]
    token_ids = [item for item in given if isinstance(item, int)]
    lists = [item for item in given if isinstance(item, list)]
    if not given or len(given) not in (len(texts), len(token_ids), len(lists)):
        raise InvalidRequestError(
            "prompt must be a string, a list of strings, a list of token ids, or a list of such lists; "
            "not empty, not mixed.",
            param="prompt",
        )
    if token_ids:
        return (Prompt(token_ids=token_ids),)
    return tuple(Prompt(text=text) for text in texts) or tuple(Prompt(token_ids=ids) for ids in lists)


def _body(
    head: dict[str, object], generation: Generation, logprobs: CompletionLogprobs | None
) -> dict[str, object]:
    return {
        **head,
        "object": "text_completion",
        "choices": [
            {
                "index": chunk.index,
                "text": chunk.text,
                "logprobs": None if logprobs is None else logprobs.of(chunk),
                "finish_reason": chunk.finish_reason,
            }
            for chunk in generation.transcript.as_chunks()
        ],
        "usage": generation.transcript.usage.as_dict(),
    }


COMPLETIONS = Dialect(
    local=_local,
    remote=lambda asked, target: relay(
        asked, target, lambda up: COMPLETIONS_API if up.format == "openai" else None
    ),
    operation="text_completion",
)
