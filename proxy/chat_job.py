"""A chat request as a job for the engine: its messages through the template, its tools as a grammar.

Other APIs than OpenAI's chat are told as chat requests first, and become jobs here too.
"""

import asyncio

import msgspec

from ..cache import WholePrompt
from .answer import Layout
from .answer_layout import constrained, layout_of
from .backend import Backend, Served
from .chat import last_question, template_messages, template_variables
from .compat import FieldPolicy
from .controls import CacheControls
from .openai_types import ChatRequest
from .service import LONG_TEXT, Job, Prompt
from .tenants.admission import Admission
from .thought_tokens import ThoughtTokens
from .tools import Tools


async def chat_job(
    asked: ChatRequest,
    *,
    id: str,
    admission: Admission,
    controls: CacheControls,
    backend: Backend,
    served: Served,
    policy: FieldPolicy,
) -> tuple[Job, Layout]:
    """The job, and what its answer may consist of. Waits until the model is ready.

    Raises InvalidRequestError, or EngineDeadError where the model could not be loaded.
    """
    await backend.ready()
    params, nothing = asked.sampling_params(backend.defaults.sampling)
    tokenizer = backend.tokenizer
    tools = Tools.of(asked, tokenizer, policy)
    messages = template_messages(asked.messages, tokenizer=tokenizer, policy=policy)
    variables = template_variables(asked.chat_template_kwargs)
    if tools is not None:
        variables = {**variables, "tools": tools.shown}
    text = tokenizer.render_chat(messages, **variables)
    layout = layout_of(text, tools, tokenizer.thinking)
    job = Job(
        id=id,
        admission=admission,
        # The template writes the special tokens itself.
        prompts=(Prompt(text=text, add_special_tokens=False),),
        params=msgspec.structs.replace(constrained(params, layout, tools, tokenizer), adapter=served.adapter),
        urgency=asked.urgency,
        question=last_question(messages),
        draft=asked.prediction.text if asked.prediction else None,
        controls=controls,
        nothing=nothing,
        default_limit=backend.defaults.max_tokens,
        thoughts=ThoughtTokens.of(layout, tokenizer),
        whole=WholePrompt(
            served.name,
            messages=messages,
            tools=None if tools is None else tools.shown,
            begun=layout.begun_in(text),
        ),
    )
    return job, layout


async def prompt_tokens(job: Job, backend: Backend) -> int:
    """How many the prompt of a `chat_job` has."""
    (prompt,) = job.prompts
    assert prompt.text is not None
    encode = backend.tokenizer.encode
    if len(prompt.text) < LONG_TEXT:
        return len(encode(prompt.text, add_special_tokens=prompt.add_special_tokens))
    return len(await asyncio.to_thread(encode, prompt.text, add_special_tokens=prompt.add_special_tokens))
