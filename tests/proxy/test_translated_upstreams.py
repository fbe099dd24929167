"""Clients of both APIs before upstreams of both APIs: the upstream is Penstock itself, which speaks both, so that what comes
through must be what comes directly.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from running_server import RunningServer, running_server
from tool_templates import FAMILIES

from penstock.config import Settings
from penstock.proxy.backends import Backends
from penstock.proxy.server import HttpServer, address_of, listen, open_cache
from penstock.scheduler import EngineConfig
from penstock.scheduler.engine_process import EngineThread
from penstock.tables import Upstream

ASK: list[Any] = [{"role": "user", "content": "what is the weather in Lima?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
FORMATS = ("openai", "anthropic", "native")


@asynccontextmanager
async def before(url: str, cache_path: Path) -> AsyncIterator[str]:
    """A server without a model, whose upstreams are one and the same, in either of its APIs."""
    upstreams = {
        name: Upstream(base_url=f"{url}/v1", format=name, models=["*"]) for name in ("openai", "anthropic")
    }
    upstreams["native"] = Upstream(base_url=f"{url}/v1", responses=True, models=["*"])
    settings = Settings(model="none", port=0, upstreams=upstreams, cache_path=cache_path)
    sock, cache = listen(settings), open_cache(settings)
    http = HttpServer(settings, Backends(None), cache, sock)
    await http.start()
    yield address_of(sock)
    await http.close()
    assert cache is not None
    cache.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def caller(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """Its model writes calls."""
    folder = FAMILIES["hermes"].write(tmp_path_factory.mktemp("translated") / "hermes")
    engine = EngineThread(EngineConfig(model=str(folder)))
    engine.start()
    async with running_server(engine.address, folder) as running:
        yield running
    engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(caller: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with before(caller.url, tmp_path_factory.mktemp("kept") / "cache") as url:
        yield url


def by_openai(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="mine", max_retries=0, timeout=30)


def by_anthropic(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="mine", max_retries=0, timeout=30)


async def chat(url: str, model: str, *, stream: bool, **fields: Any) -> dict[str, Any]:
    asked = {"model": model, "messages": ASK, "temperature": 0, "max_tokens": 40, **fields}
    create = by_openai(url).chat.completions.create
    if not stream:
        whole = await create(**asked)
        (choice,) = whole.choices
        calls = [
            (call.function.name, json.loads(call.function.arguments))
            for call in choice.message.tool_calls or ()
        ]
        text, reason, usage = choice.message.content, choice.finish_reason, whole.usage
    else:
        text, reason, usage, told = "", None, None, dict[int, list[str]]()
        async for chunk in await create(**asked, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
                for call in choice.delta.tool_calls or ():
                    assert call.function is not None
                    pieces = told.setdefault(call.index, [call.function.name or "", ""])
                    pieces[1] += call.function.arguments or ""
        calls = [(name, json.loads(arguments)) for name, arguments in told.values()]
    assert usage is not None
    return {
        "text": text or "",
        "calls": calls,
        "reason": reason,
        "tokens": (usage.prompt_tokens, usage.completion_tokens),
    }


async def message(url: str, model: str, *, stream: bool, **fields: Any) -> dict[str, Any]:
    body = {"temperature": 0, **fields.pop("extra_body", {})}
    asked = {"model": model, "messages": ASK, "max_tokens": 40, "extra_body": body, **fields}
    if stream:
        async with by_anthropic(url).messages.stream(**asked) as events:
            found = await events.get_final_message()
    else:
        found = await by_anthropic(url).messages.create(**asked)
    return {
        "text": "".join(block.text for block in found.content if block.type == "text"),
        "calls": [(block.name, block.input) for block in found.content if block.type == "tool_use"],
        "reason": found.stop_reason,
        "tokens": (
            found.usage.input_tokens + (found.usage.cache_read_input_tokens or 0),
            found.usage.output_tokens,
        ),
    }


async def response(url: str, model: str, *, stream: bool, **fields: Any) -> dict[str, Any]:
    asked = {"model": model, "input": ASK, "temperature": 0, "max_output_tokens": 40, **fields}
    client = by_openai(url)
    if stream:
        async for event in await client.responses.create(**asked, stream=True):
            last = event
        assert last.type in ("response.completed", "response.incomplete")
        found = last.response
    else:
        found = await client.responses.create(**asked)
    assert found.usage is not None
    return {
        "text": found.output_text,
        "calls": [
            (item.name, json.loads(item.arguments)) for item in found.output if item.type == "function_call"
        ],
        "reason": (found.status, found.incomplete_details and found.incomplete_details.reason),
        "tokens": (found.usage.input_tokens, found.usage.output_tokens),
    }


CALL_BY_RESPONSE = {
    "tools": [{"type": "function", "name": "weather", "parameters": CITY, "strict": False}],
    "tool_choice": "required",
    "max_output_tokens": 200,
}
CALL_BY_CHAT = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": CITY}}],
    "tool_choice": "required",
}
CALL_BY_MESSAGE = {"tools": [{"name": "weather", "input_schema": CITY}], "tool_choice": {"type": "any"}}


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("calls", [False, True], ids=["text", "calls"])
async def test_an_answer_comes_through_as_it_is(
    caller: RunningServer, gateway: str, format_: str, calls: bool, stream: bool
) -> None:
    longer = {"max_tokens": 200}
    asks = (
        (chat, {**CALL_BY_CHAT, **longer}),
        (message, {**CALL_BY_MESSAGE, **longer}),
        (response, CALL_BY_RESPONSE),
    )
    for ask, calling in asks:
        fields = calling if calls else {}
        direct = await ask(caller.url, caller.backend.name, stream=False, **fields)
        through = await ask(gateway, f"{format_}/{caller.backend.name}", stream=stream, **fields)
        assert through == direct
        assert bool(direct["calls"]) is calls


@pytest.mark.parametrize("format_", FORMATS)
async def test_a_kept_answer_is_told_again_in_either_form(
    caller: RunningServer, gateway: str, format_: str
) -> None:
    model = f"{format_}/{caller.backend.name}"
    kept = {"max_tokens": 200, **CALL_BY_CHAT, "messages": [{"role": "user", "content": f"kept {format_}"}]}
    answers = [await chat(gateway, model, stream=stream, **kept) for stream in (False, True, False)]
    raw = await by_openai(gateway).chat.completions.with_raw_response.create(
        model=model, temperature=0, **kept
    )
    assert raw.headers["x-penstock-cache"] == "hit" and raw.headers["x-penstock-model"] == model
    assert answers[0] == answers[1] == answers[2] and answers[0]["calls"]
    told = {**CALL_BY_MESSAGE, "max_tokens": 200, "messages": kept["messages"]}
    answers = [await message(gateway, model, stream=stream, **told) for stream in (False, True, False)]
    assert answers[0] == answers[1] == answers[2] and answers[0]["calls"]


async def test_a_conversation_with_results_of_calls_goes_on(caller: RunningServer, gateway: str) -> None:
    for format_ in FORMATS:
        model = f"{format_}/{caller.backend.name}"
        client = by_openai(gateway)
        first = await client.chat.completions.create(
            model=model, messages=ASK, temperature=0, max_tokens=200, **CALL_BY_CHAT
        )
        (call,) = first.choices[0].message.tool_calls
        turns = [
            *ASK,
            first.choices[0].message.model_dump(exclude_none=True, exclude={"refusal"}),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        tools = CALL_BY_CHAT["tools"]
        second = await chat(gateway, model, stream=False, messages=turns, tools=tools)
        assert second == await chat(
            caller.url, caller.backend.name, stream=False, messages=turns, tools=tools
        )


async def test_errors_are_told_in_the_clients_own_shape(caller: RunningServer, gateway: str) -> None:
    for format_ in FORMATS:
        model = f"{format_}/{caller.backend.name}"
        with pytest.raises(openai.BadRequestError) as bad:
            await chat(gateway, model, stream=False, tools=CALL_BY_CHAT["tools"], tool_choice="nonsense")
        assert bad.value.body["type"] == "invalid_request_error"  # type: ignore[index,call-overload]
        with pytest.raises(anthropic.BadRequestError) as wrong:
            await message(gateway, model, stream=False, extra_body={"top_k": "many"})
        assert wrong.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index,call-overload]


async def test_what_the_other_api_has_no_word_for_is_refused_by_name(
    caller: RunningServer, gateway: str
) -> None:
    model = f"anthropic/{caller.backend.name}"
    with pytest.raises(openai.BadRequestError, match="logprobs is not supported"):
        await chat(gateway, model, stream=False, logprobs=True)
    with pytest.raises(openai.BadRequestError, match="has nothing like /v1/completions"):
        await by_openai(gateway).completions.create(model=model, prompt="x")


async def test_tokens_are_counted_by_an_upstream_that_can(caller: RunningServer, gateway: str) -> None:
    counted = await by_anthropic(gateway).messages.count_tokens(
        model=f"anthropic/{caller.backend.name}", messages=ASK
    )
    direct = await by_anthropic(caller.url).messages.count_tokens(model=caller.backend.name, messages=ASK)
    assert counted.input_tokens == direct.input_tokens > 0
