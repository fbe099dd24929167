"""Anthropic's API over HTTP, with Anthropic's own client, against a server on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import jsonschema
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server
from tool_templates import FAMILIES, Family

from penstock.scheduler import EngineConfig
from penstock.scheduler.engine_process import EngineThread

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}
ASKED: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 24, **GREEDY}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"name": "weather", "description": "a forecast", "input_schema": WEATHER},
    {"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]
# Calls, and thoughts that the variable of Qwen's templates switches.
SWITCHED = Family(
    FAMILIES["thinking"]
    .template.replace("thoughts == 'open'", "enable_thinking")
    .replace("thoughts == 'closed'", "enable_thinking is defined"),
    added=FAMILIES["thinking"].added,
)


def client(server: RunningServer, api_key: str = "unused") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=server.url, api_key=api_key, max_retries=0, timeout=30)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def thinker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    root = tmp_path_factory.mktemp("messages")
    folder = SWITCHED.write(root / "thinker")
    engine = EngineThread(EngineConfig(model=str(folder)))
    engine.start()
    async with running_server(engine.address, folder) as running:
        yield running
    engine.stop()


async def post(
    server: RunningServer, body: bytes | dict[str, Any], path: str = "/v1/messages", **headers: str
) -> tuple[int, dict[str, Any], Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + path, data=data, headers=headers) as reply,
    ):
        return reply.status, await reply.json(), reply.headers


def assert_error(content: dict[str, Any], headers: Any, kind: str) -> str:
    assert content.keys() == {"type", "error", "request_id"} and content["type"] == "error"
    assert content["error"].keys() == {"type", "message"}
    assert content["request_id"] == headers["request-id"] == headers["x-request-id"]
    assert content["error"]["type"] == kind
    message: str = content["error"]["message"]
    return message


async def test_a_message(server: RunningServer) -> None:
    raw = await client(server).messages.with_raw_response.create(**ASKED)
    message = await raw.parse()
    chat = await server.client().chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=24, temperature=0
    )
    (block,) = message.content
    assert block.type == "text" and block.text == chat.choices[0].message.content
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    usage = message.usage
    assert chat.usage is not None and usage.cache_read_input_tokens is not None
    assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens
    assert usage.output_tokens == 24
    assert message.id.startswith("msg_") and message._request_id == raw.headers["x-request-id"]
    assert raw.headers["x-penstock-model"] == "tiny"


async def test_a_stream_comes_to_the_same_message(server: RunningServer) -> None:
    whole = await client(server).messages.create(**ASKED)
    async with client(server).messages.stream(**ASKED) as stream:
        kinds = [event.type async for event in stream]
        message = await stream.get_final_message()
    for field in ("type", "role", "model", "stop_reason", "stop_sequence"):
        assert getattr(message, field) == getattr(whole, field)
    assert [block.to_dict() for block in message.content] == [block.to_dict() for block in whole.content]
    assert message.usage.output_tokens == 24
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 1


async def test_the_first_event_counts_the_prompt(server: RunningServer) -> None:
    events = [event async for event in await client(server).messages.create(**ASKED, stream=True)]
    first, last = events[0], events[-2]
    assert first.type == "message_start" and last.type == "message_delta"
    counted = await client(server).messages.count_tokens(model="tiny", messages=HELLO)
    for usage in (first.message.usage, last.usage):
        assert usage.input_tokens is not None and usage.cache_read_input_tokens is not None
        assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens


async def test_stop_sequences(server: RunningServer) -> None:
    (block,) = (await client(server).messages.create(**ASKED)).content
    assert block.type == "text"
    stop = block.text[4:6]
    stopped = await client(server).messages.create(**ASKED, stop_sequences=["never comes", stop])
    async with client(server).messages.stream(**ASKED, stop_sequences=["never comes", stop]) as stream:
        streamed = await stream.get_final_message()
    for message in (stopped, streamed):
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
        assert (
            "".join(each.text for each in message.content if each.type == "text")
            == block.text.partition(stop)[0]
        )


async def test_a_prompt_that_fills_the_context(server: RunningServer) -> None:
    room = server.engine.info.max_model_len
    filled = [{"role": "user", "content": "a" * (room - 20)}]
    message = await client(server).messages.create(**{**ASKED, "messages": filled, "max_tokens": 100})
    assert message.stop_reason == "model_context_window_exceeded"
    assert message.usage.output_tokens < 20


async def test_a_limit_of_no_tokens(server: RunningServer) -> None:
    message = await client(server).messages.create(**{**ASKED, "max_tokens": 0})
    assert (message.content, message.stop_reason, message.usage.output_tokens) == ([], "max_tokens", 0)
    assert message.usage.input_tokens


async def test_counting_tokens(thinker: RunningServer) -> None:
    count = client(thinker).messages.count_tokens
    bare = (await count(model="thinker", messages=HELLO)).input_tokens
    system = (await count(model="thinker", messages=HELLO, system="be brief")).input_tokens
    tools = (await count(model="thinker", messages=HELLO, system="be brief", tools=TOOLS)).input_tokens
    assert 0 < bare < system < tools
    message = await client(thinker).messages.create(
        model="thinker", max_tokens=1, messages=HELLO, system="be brief", tools=TOOLS
    )
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == tools


async def test_tools(thinker: RunningServer) -> None:
    for name in ("weather", "now"):
        asked: dict[str, Any] = {
            "model": "thinker", "messages": HELLO, "max_tokens": 400, "tools": TOOLS, "thinking": {"type": "disabled"},
            "tool_choice": {"type": "tool", "name": name, "disable_parallel_tool_use": True}, **GREEDY,
        }  # fmt: skip
        message = await client(thinker).messages.create(**asked)
        async with client(thinker).messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        (call,), (same,) = message.content, streamed.content
        assert call.type == same.type == "tool_use"
        assert (call.name, call.input) == (same.name, same.input)
        assert call.name == name and call.id.startswith("toolu_") and call.id != same.id
        jsonschema.validate(call.input, TOOLS[name == "now"]["input_schema"])
        assert message.stop_reason == streamed.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        answered = await client(thinker).messages.create(
            model="thinker", max_tokens=2, tools=TOOLS,
            messages=[*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}],
        )  # fmt: skip
        assert answered.usage.output_tokens == 2


async def test_any_tool_and_none(thinker: RunningServer) -> None:
    asked: dict[str, Any] = {
        "model": "thinker",
        "messages": HELLO,
        "tools": TOOLS,
        "thinking": {"type": "disabled"},
    }
    choice = {"type": "any", "disable_parallel_tool_use": True}
    message = await client(thinker).messages.create(**asked, max_tokens=400, tool_choice=choice)  # type: ignore[arg-type]
    assert [block.type for block in message.content] == ["tool_use"]
    message = await client(thinker).messages.create(**asked, max_tokens=20, tool_choice={"type": "none"})
    assert "tool_use" not in [block.type for block in message.content]


async def test_thoughts(thinker: RunningServer) -> None:
    """The random model never ends its thoughts by itself."""
    asked: dict[str, Any] = {"model": "thinker", "messages": HELLO, "max_tokens": 30, **GREEDY}
    adaptive: Any = {"type": "adaptive"}
    message = await client(thinker).messages.create(**asked, thinking=adaptive)
    async with client(thinker).messages.stream(**asked, thinking=adaptive) as stream:
        streamed = await stream.get_final_message()
    (thought,), (same,) = message.content, streamed.content
    assert thought.type == same.type == "thinking" and thought.thinking
    assert (thought.thinking, thought.signature) == (same.thinking, same.signature)
    hidden = await client(thinker).messages.create(**asked, thinking={**adaptive, "display": "omitted"})
    assert [(each.type, getattr(each, "thinking", None)) for each in hidden.content] == [("thinking", "")]
    none = await client(thinker).messages.create(**asked, thinking={"type": "disabled"})
    assert [block.type for block in none.content] == ["text"]
    back = await client(thinker).messages.create(
        **{**asked, "messages": [*HELLO, {"role": "assistant", "content": message.content}, *HELLO]}
    )
    assert back.usage.output_tokens


async def test_structured_output(thinker: RunningServer) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": WEATHER}}
    message = await client(thinker).messages.create(
        model="thinker", messages=HELLO, max_tokens=400, output_config=form, thinking={"type": "disabled"}
    )
    (block,) = message.content
    assert block.type == "text"
    jsonschema.validate(json.loads(block.text), WEATHER)


async def test_the_same_question_in_both_apis_is_answered_once(server: RunningServer) -> None:
    question: list[Any] = [{"role": "system", "content": "one answer for both"}, *HELLO]
    asked = {**ASKED, "messages": HELLO, "system": [{"type": "text", "text": "one answer for both"}]}
    whole = await client(server).messages.create(**asked)
    (block,) = whole.content
    assert block.type == "text"
    stop = [block.text[5:7]]
    outcomes = []
    chat = await server.client().chat.completions.with_raw_response.create(
        model="tiny", messages=question, max_tokens=24, temperature=0, stop=stop
    )
    outcomes.append(chat.headers["x-penstock-cache"])
    text = chat.parse().choices[0].message.content
    for _ in range(2):
        raw = await client(server).messages.with_raw_response.create(**asked, stop_sequences=stop)
        outcomes.append(raw.headers["x-penstock-cache"])
        message = await raw.parse()
        assert [getattr(each, "text", "") for each in message.content] == [text]
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop[0])
    assert outcomes == ["miss", "hit", "hit"]
    assert (message.usage.input_tokens, message.usage.output_tokens > 0) == (0, True), "nothing was computed"


async def test_cache_directives(server: RunningServer) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 3, "temperature": 0}
    _, _, headers = await post(server, body, **{"x-penstock-cache-control": "no-cache, no-store"})
    assert headers["x-penstock-cache"] == "bypass"
    status, content, headers = await post(server, {**body, "penstock": {"cash": {}}})
    assert status == 400 and "penstock.cash" in assert_error(content, headers, "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "status", "kind", "says"),
    [
        (b"{", 400, "invalid_request_error", "not valid JSON"),
        ({"model": "tiny", "messages": HELLO}, 400, "invalid_request_error", "`max_tokens`"),
        ({"max_tokens": -1}, 400, "invalid_request_error", "max_tokens is -1"),
        ({"model": "other"}, 404, "not_found_error", "'other'"),
        ({"temprature": 1}, 400, "invalid_request_error", "did you mean 'temperature'"),
        ({"stop_sequences": [""]}, 400, "invalid_request_error", "stop_sequences contains an empty"),
        ({"tools": TOOLS}, 400, "invalid_request_error", "does not mention tools"),
        (
            {"messages": [{"role": "user", "content": "a" * 9000}]},
            400,
            "invalid_request_error",
            "at most 512",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}
                ]
            },
            400,
            "invalid_request_error",
            "messages[0].content[0].type is 'image'",
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {
                        "role": "assistant",
                        "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}],
                    },
                    *HELLO,
                ]
            },
            400,
            "invalid_request_error",
            "messages[1].thinking: the model's chat template marks no thoughts",
        ),
    ],
)
async def test_refusals(
    server: RunningServer, body: bytes | dict[str, Any], status: int, kind: str, says: str
) -> None:
    if isinstance(body, dict) and "max_tokens" not in says:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 4, **body}
    elif isinstance(body, dict):
        body = {"model": "tiny", "messages": HELLO, **body}
    got, content, headers = await post(server, body)
    assert got == status
    assert says in assert_error(content, headers, kind)


async def test_errors_below_the_handler_have_the_same_shape(server: RunningServer) -> None:
    status, content, headers = await post(server, b"{}", "/v1/messages/batches")
    assert status == 404 and "POST /v1/messages/batches" in assert_error(content, headers, "not_found_error")
    async with aiohttp.ClientSession() as session, session.get(server.url + "/v1/messages") as reply:
        assert reply.status == 405
        assert_error(await reply.json(), reply.headers, "invalid_request_error")
    status, content, headers = await post(server, b"{}", "/v1/messages", **{"Content-Encoding": "gzip"})
    assert status == 400
    assert_error(content, headers, "invalid_request_error")


async def test_an_unknown_version_or_beta_is_refused(server: RunningServer) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
    for name, value in (("anthropic-version", "2023-01-01"), ("anthropic-beta", "skills-2025-10-02")):
        status, content, headers = await post(server, body, **{name: value})
        assert status == 400 and value in assert_error(content, headers, "invalid_request_error")


async def test_dropped_fields_are_named(engine_address: str, model: Path) -> None:
    async with running_server(engine_address, model, unsupported="drop") as lenient:
        raw = await client(lenient).messages.with_raw_response.create(
            model="tiny", messages=HELLO, max_tokens=2, container="c", tools=TOOLS,
            extra_headers={"anthropic-beta": "skills-2025-10-02"},
        )  # fmt: skip
        assert raw.headers["x-penstock-dropped"] == "anthropic-beta:skills-2025-10-02,container,tools"


async def test_an_agents_request(thinker: RunningServer) -> None:
    """What coding agents send: betas, fields of Anthropic's service, a system message behind others, a limit beyond all."""
    ephemeral = {"cache_control": {"type": "ephemeral"}}
    body = {
        "model": "thinker",
        "max_tokens": 32000,
        "stream": True,
        "temperature": 0,
        "system": [
            {"type": "text", "text": "You are an agent. " * 80, **ephemeral},
            {"type": "text", "text": "Be brief."},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi", **ephemeral}]},
            {"role": "system", "content": [{"type": "text", "text": "a hint", **ephemeral}]},
        ],
        "tools": [
            {**TOOLS[0], "eager_input_streaming": True, **ephemeral},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "metadata": {"user_id": "user_1"},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }
    betas = "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27"
    async with (
        running_server(thinker.engine.address, Path(thinker.settings.model), unsupported="drop") as server,
        aiohttp.ClientSession() as session,
        session.post(
            server.url + "/v1/messages?beta=true", json=body, headers={"anthropic-beta": betas}
        ) as reply,
    ):
        assert reply.status == 200
        dropped = reply.headers["x-penstock-dropped"]
        assert dropped == "context_management,tools[1].type,output_config.effort"
        text = await reply.text()
    assert '"type":"thinking"' in text and "thinking_delta" not in text
    assert '"stop_reason":"model_context_window_exceeded"' in text


async def test_keys_and_large_bodies(engine_address: str, model: Path) -> None:
    async with running_server(engine_address, model, api_keys=("right",), max_body_bytes=1000) as locked:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
        status, content, headers = await post(locked, body)
        assert status == 401 and "x-api-key" in assert_error(content, headers, "authentication_error")
        status, _, _ = await post(locked, body, **{"x-api-key": "right"})
        assert status == 200
        message = await client(locked, "right").messages.create(model="tiny", messages=HELLO, max_tokens=1)
        assert message.usage.output_tokens == 1
        with pytest.raises(anthropic.AuthenticationError):
            await client(locked, "wrong").messages.create(model="tiny", messages=HELLO, max_tokens=1)
        status, content, headers = await post(locked, b"x" * 1001, **{"x-api-key": "right"})
        assert status == 413 and "1000 bytes" in assert_error(content, headers, "request_too_large")


async def test_a_client_that_leaves_mid_stream_frees_the_engine(server: RunningServer) -> None:
    await server.idle()
    stream = await client(server).messages.create(
        model="tiny", messages=HELLO, max_tokens=480, stream=True, extra_body={"temperature": 0}
    )
    events = aiter(stream)
    for _ in range(4):
        await anext(events)
    assert server.engine.stats.num_running == 1
    await stream.close()
    await server.idle()


async def test_a_stream_that_breaks_off_says_so(engine_address: str, model: Path) -> None:
    async with running_server(engine_address, model) as server:
        stream = await client(server).messages.create(
            model="tiny", messages=HELLO, max_tokens=480, stream=True, extra_body={"temperature": 0}
        )
        events = aiter(stream)
        await anext(events)
        await server.backend.close()
        with pytest.raises(anthropic.APIStatusError, match="shut down") as broken:
            async for _ in events:
                pass
        assert broken.value.type == "overloaded_error"


async def test_overload_says_when_to_come_back(server: RunningServer) -> None:
    """The engine takes 64 running and 32 waiting sequences."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 400}
    create = client(server).messages.create
    running = [asyncio.create_task(create(**asked)) for _ in range(110)]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION, timeout=20)
        refused = next((error for task in done if (error := task.exception())), None)
        assert isinstance(refused, anthropic.RateLimitError) and refused.type == "rate_limit_error"
        assert int(refused.response.headers["retry-after"]) >= 1
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    await server.idle()
