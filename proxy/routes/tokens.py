"""POST /tokenize and /detokenize, in vLLM's shapes."""

import asyncio

from aiohttp import web

from ...errors import InvalidRequestError
from ..chat import template_messages, template_variables
from ..compat import FieldPolicy
from ..context import CONTEXT
from ..json_reply import json_response
from ..openai_types import DetokenizeRequest, TokenizeRequest, convert, decode_object
from ..request_body import read_body
from ..service import LONG_TEXT
from ..tools import Tools


async def tokenize(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    asked = convert(decode_object(await read_body(request)), TokenizeRequest)
    backend = context.backends.find(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequestError("Send either prompt or messages.", param="prompt")
    await backend.ready()
    tokenizer = backend.tokenizer
    special = asked.add_special_tokens
    if asked.messages is not None:
        messages = template_messages(asked.messages, tokenizer=tokenizer, policy=FieldPolicy("refuse"))
        variables = template_variables(asked.chat_template_kwargs)
        if tools := Tools.of(asked.as_chat(), tokenizer, FieldPolicy("refuse")):
            variables = {**variables, "tools": tools.shown}
        text = tokenizer.render_chat(messages, add_generation_prompt=asked.add_generation_prompt, **variables)
        special = bool(special)  # the template writes them itself
    else:
        assert asked.prompt is not None
        text = asked.prompt
        special = special is not False
    if len(text) < LONG_TEXT:
        token_ids = tokenizer.encode(text, add_special_tokens=special)
    else:
        token_ids = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=special)
    strings = [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in token_ids]
    return json_response(
        {
            "count": len(token_ids),
            "max_model_len": backend.engine.info.max_model_len,
            "tokens": token_ids,
            "token_strs": strings if asked.return_token_strs else None,
        }
    )


async def detokenize(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    asked = convert(decode_object(await read_body(request)), DetokenizeRequest)
    backend = context.backends.find(asked.model)
    await backend.ready()
    tokenizer = backend.tokenizer
    for token_id in asked.tokens:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise InvalidRequestError(
                f"tokens holds {token_id}; ids of this model are 0..{tokenizer.vocab_size - 1}.",
                param="tokens",
            )
    return json_response({"prompt": tokenizer.decode(asked.tokens, skip_special_tokens=False)})
