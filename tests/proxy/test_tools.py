"""Tools over HTTP, with OpenAI's own client, for models that write calls in different ways."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel
from running_server import RunningServer, running_server
from tool_templates import FAMILIES

from penstock.scheduler import EngineConfig
from penstock.scheduler.engine_process import EngineThread

ASK = [{"role": "user", "content": "what is the weather in Lima?"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"enum": ["metric", "imperial"]},
    },
    "required": ["city", "units"],
    "additionalProperties": False,
}
MOVE = {
    "type": "object",
    "properties": {
        "path": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "x": {"type": "integer", "minimum": -9, "maximum": 9},
                    "on": {"type": "boolean"},
                },
                "required": ["x", "on"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["path"],
    "additionalProperties": False,
}
SCHEMAS = {"weather": WEATHER, "weather_now": {"type": "object", "additionalProperties": False}, "move": MOVE}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "a forecast", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "weather_now"}},
    {"type": "function", "function": {"name": "move", "parameters": MOVE, "strict": True}},
]
END = "256"

Start = Callable[[str], Awaitable[RunningServer]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def families(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Start]:
    """Starts the server of a family's model once, with a cache."""
    root = tmp_path_factory.mktemp("families")
    running: dict[str, RunningServer] = {}
    async with AsyncExitStack() as stack:

        async def start(name: str) -> RunningServer:
            if name not in running:
                folder = FAMILIES[name].write(root / name)
                engine = EngineThread(EngineConfig(model=str(folder), quantize="w8a8"))
                engine.start()
                stack.callback(engine.stop)
                server = running_server(engine.address, folder, cache_path=root / f"{name}-cache")
                running[name] = await stack.enter_async_context(server)
            return running[name]

        yield start


@pytest_asyncio.fixture(loop_scope="session", params=FAMILIES)
async def family(request: pytest.FixtureRequest, families: Start) -> RunningServer:
    return await families(request.param)


@pytest_asyncio.fixture(loop_scope="session")
async def hermes(families: Start) -> RunningServer:
    return await families("hermes")


def enough(server: RunningServer) -> dict[str, int]:
    """A bias without which a random model would go on calling, or thinking, for ever."""
    close = server.backend.tokenizer.markers.get("</think>")
    return {END: 3, str(server.token_id("]")): 3, **({} if close is None else {str(close): 8})}


def asked(server: RunningServer, **change: Any) -> dict[str, Any]:
    return {
        "model": server.backend.name,
        "messages": ASK,
        "tools": TOOLS,
        "temperature": 1,
        "max_tokens": 900,
        "logit_bias": enough(server),
        **change,
    }


def calling(server: RunningServer) -> dict[str, int]:
    """A bias under which the random model soon calls."""
    tokenizer = server.backend.tokenizer
    trigger = tokenizer.markers.get(tokenizer.tool_format.trigger)  # type: ignore[union-attr]
    return {
        **enough(server),
        **server.spelling('{"name:'),
        **({} if trigger is None else {str(trigger): 100}),
    }


def check(message: ChatCompletionMessage) -> None:
    """Every call is one that could be made."""
    assert message.tool_calls
    for call in message.tool_calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    ids = [call.id for call in message.tool_calls]
    assert len(set(ids)) == len(ids) and all(len(call_id) == 9 and call_id.isalnum() for call_id in ids)


def calls_of(message: ChatCompletionMessage) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


async def streamed(server: RunningServer, **change: Any) -> tuple[ChatCompletionMessage, str]:
    """A stream's message put together, and its finish_reason; checks the deltas' shapes on the way."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: list[dict[str, Any]] = []
    reason = None
    async for chunk in await server.client().chat.completions.create(**asked(server, **change), stream=True):
        (choice,) = chunk.choices
        assert reason is None, "nothing comes after the end"
        reason = choice.finish_reason
        if choice.delta.content is not None:
            message["content"] = (message["content"] or "") + choice.delta.content
        thought = getattr(choice.delta, "reasoning_content", None)
        if thought is not None:
            message["reasoning_content"] = message.get("reasoning_content", "") + thought
        for delta in choice.delta.tool_calls or []:
            assert delta.function is not None
            if delta.index == len(calls):
                assert delta.id and delta.type == "function" and delta.function.name
                calls.append(
                    {
                        "id": delta.id,
                        "type": "function",
                        "function": {"name": delta.function.name, "arguments": ""},
                    }
                )
            else:
                assert delta.index == len(calls) - 1 and delta.id is None and delta.function.name is None
            calls[-1]["function"]["arguments"] += delta.function.arguments
    if calls:
        message["tool_calls"] = calls
    assert reason is not None
    return ChatCompletionMessage.model_validate(message), reason


async def test_forced_calls_obey_their_schemas(family: RunningServer) -> None:
    client = family.client()
    for seed in range(8):
        reply = await client.chat.completions.create(**asked(family, tool_choice="required", seed=seed))
        (choice,) = reply.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        check(choice.message)
        message, reason = await streamed(family, tool_choice="required", seed=seed)
        assert reason == "tool_calls" and message.content is None
        assert calls_of(message) == calls_of(choice.message)
        check(message)


async def test_one_answer_may_hold_several_calls(family: RunningServer) -> None:
    form = family.backend.tokenizer.tool_format
    assert not isinstance(form, str | None)
    again = {str(family.token_id(char)): 5 for char in ("\n", ",")}
    if marker := family.backend.tokenizer.markers.get(form.trigger):
        again[str(marker)] = 5
    bias = {**enough(family), **again, END: -3, str(family.token_id("]")): -3}
    message, reason = await streamed(family, tool_choice="required", seed=1, logit_bias=bias, max_tokens=600)
    assert message.tool_calls
    if form.next is None:
        assert len(message.tool_calls) == 1
    else:
        assert len(message.tool_calls) > 2
        if reason == "length":
            message.tool_calls.pop()
    check(message)


async def test_unseeded_streams_obey_too(family: RunningServer) -> None:
    for _ in range(4):
        message, reason = await streamed(family, tool_choice="required", parallel_tool_calls=False)
        check(message)
        assert reason == "tool_calls" and len(message.tool_calls or []) == 1


async def test_a_named_function_is_called(family: RunningServer) -> None:
    for name in SCHEMAS:
        choice = {"type": "function", "function": {"name": name}}
        reply = await family.client().chat.completions.create(
            **asked(family, tool_choice=choice, n=2, seed=1)
        )
        for each in reply.choices:
            check(each.message)
            assert {called for called, _ in calls_of(each.message)} == {name}


async def test_a_free_model_may_call_and_then_obeys(family: RunningServer) -> None:
    """Its text is noise; once it has begun a call, the rest of it is right."""
    form = family.backend.tokenizer.tool_format
    called = 0
    for seed in range(6):
        message, reason = await streamed(
            family, seed=seed, logit_bias=calling(family), max_tokens=300, parallel_tool_calls=False
        )
        if reason == "tool_calls":
            check(message)
            called += 1
        elif not message.tool_calls:
            assert message.content is not None
            assert form.trigger not in message.content or form.at_start  # type: ignore[union-attr]
    assert called or form.trigger not in family.backend.tokenizer.markers  # type: ignore[union-attr]


async def test_none_calls_nothing(family: RunningServer) -> None:
    reply = await family.client().chat.completions.create(
        **asked(family, tool_choice="none", logit_bias=calling(family), max_tokens=60, n=3, seed=1)
    )
    for choice in reply.choices:
        assert choice.message.tool_calls is None and choice.finish_reason in ("stop", "length")
        assert "TOOL_CALLS" not in (choice.message.content or "")
        assert "<tool_call>" not in (choice.message.content or "")


async def test_the_next_turn_begins_with_what_the_model_wrote(family: RunningServer) -> None:
    """The template writes the call that the model made as the model wrote it: the prompt's tokens are found again."""
    client = family.client()
    plain = {**enough(family), **family.spelling("abc")}  # no characters that JSON may write in several ways
    body = asked(family, tool_choice="required", seed=3, logprobs=True, logit_bias=plain)
    reply = await client.chat.completions.create(**body)
    message = reply.choices[0].message
    assert message.tool_calls and reply.choices[0].logprobs and reply.usage
    raw = bytes(byte for token in reply.choices[0].logprobs.content or [] for byte in token.bytes or [])
    assert reply.usage.completion_tokens - len(reply.choices[0].logprobs.content or []) in (0, 1)
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "grey"}'} for call in message.tool_calls
    ]
    again = [*ASK, message.model_dump(exclude_none=True), *results]
    second = await client.chat.completions.create(
        **asked(family, messages=again, tool_choice="none", max_tokens=4, seed=1)
    )
    assert second.usage and second.usage.prompt_tokens > reply.usage.total_tokens
    counted = await client.with_options(base_url=family.url).post(
        "/tokenize", body={"messages": again, "tools": TOOLS}, cast_to=object
    )
    assert counted["count"] == second.usage.prompt_tokens  # type: ignore[index]
    if b'"id"' not in raw and b"[CALL_ID]" not in raw:  # an id is ours, not the model's
        details = second.usage.prompt_tokens_details
        assert details and details.cached_tokens
        assert details.cached_tokens >= reply.usage.total_tokens - 2 - family.engine.info.block_size


async def test_a_call_is_kept_and_replayed_whole(family: RunningServer) -> None:
    client = family.client()
    body = asked(family, tool_choice="required", seed=11, n=2)
    outcomes, bodies = [], []
    for _ in range(2):
        raw = await client.chat.completions.with_raw_response.create(**body)
        outcomes.append(raw.headers["x-penstock-cache"])
        bodies.append([calls_of(choice.message) for choice in raw.parse().choices])
    assert outcomes == ["miss", "hit"] and bodies[0] == bodies[1]
    alone = {**body, "n": 1}
    first = (await client.chat.completions.create(**alone)).choices[0].message
    replay = await client.chat.completions.with_raw_response.create(**alone, stream=True)
    assert replay.headers["x-penstock-cache"] == "hit"
    message, reason = await streamed(family, tool_choice="required", seed=11)
    assert (calls_of(message), reason) == (calls_of(first), "tool_calls")


async def test_guesses_change_nothing(family: RunningServer) -> None:
    body = asked(family, tool_choice="required", seed=21)
    fresh = {"cache": {"no_cache": True, "no_store": True}}
    client = family.client()
    guessed = await client.chat.completions.create(**body, extra_body={"penstock": fresh})
    accepted = family.engine.stats.drafters["grammar"].accepted
    plain = await client.chat.completions.create(**body, extra_body={"penstock": {**fresh, "drafters": []}})
    assert calls_of(guessed.choices[0].message) == calls_of(plain.choices[0].message)
    assert accepted > 10


async def test_stop_strings_are_for_text_only(family: RunningServer) -> None:
    """No call is cut by one, forced or not."""
    for choice in ("required", "auto"):
        reply = await family.client().chat.completions.create(
            **asked(
                family,
                tool_choice=choice,
                seed=2,
                stop=["city", "e", ":"],
                logit_bias=calling(family),
                n=4,
                parallel_tool_calls=False,
            )
        )
        for each in reply.choices:
            if each.finish_reason == "tool_calls":
                check(each.message)
            else:
                assert choice == "auto" and each.finish_reason == "stop" and not each.message.tool_calls


async def test_a_call_cut_by_the_limit_says_so(family: RunningServer) -> None:
    body = asked(family, tool_choice={"type": "function", "function": {"name": "weather"}}, seed=5)
    whole = (await family.client().chat.completions.create(**body)).choices[0]
    client = family.client()
    named = 0
    for limit in (1, 20, 50, 60, 70):
        cut = (await client.chat.completions.create(**{**body, "max_tokens": limit})).choices[0]
        assert cut.finish_reason == "length"
        for (_, before), (_, after) in zip(calls_of(cut.message), calls_of(whole.message), strict=False):
            assert after.startswith(before.rstrip("\N{REPLACEMENT CHARACTER}"))
            named += 1
    assert named


async def test_the_content_may_have_to_be_json(family: RunningServer) -> None:
    schema = {"name": "x", "schema": {"enum": ["yes", "no"]}}
    body = asked(family, response_format={"type": "json_schema", "json_schema": schema})
    client = family.client()
    if family.backend.tokenizer.tool_format.at_start:  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError, match="could not be told apart") as refused:
            await client.chat.completions.create(**body)
        assert refused.value.param == "response_format"
    else:
        reply = await client.chat.completions.create(**body, n=8, seed=1)
        for choice in reply.choices:
            if choice.message.tool_calls:
                check(choice.message)
            else:
                assert choice.message.content in ('"yes"', '"no"')
    none = await client.chat.completions.create(**body, tool_choice="none")
    assert none.choices[0].message.content in ('"yes"', '"no"')


def tool(**change: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **change}}


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        ({"tools": [tool(), tool(name="g", parameters={"type": "object", "properties": {"a": {"type": "what"}}})]},
         "tools[1].function.parameters", "Invalid type: what"),
        ({"tools": [tool(strict=True, parameters={"properties": {"a": {"not": {}}}})]},
         "tools[0].function.parameters", "not"),
        ({"tools": [tool(parameters={"type": "array"})]}, "tools[0].function.parameters.type", "an object"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name", "'a b'"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "two functions named 'f'"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "custom"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "function"),
        ({"tools": [{**tool(), "extra": 1}]}, "tools[0].extra", "extra"),
        ({"tools": [tool(name=f"f{i}", parameters={"properties": {"a": {"enum": ["x" * 9000]}}}) for i in range(30)]},
         "tools", "the limit is"),
        ({"tools": [tool()] * 129}, "tools", "at most 128"),
        ({"tool_choice": "maybe"}, "tool_choice", "must be"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice", "'fly'"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls", "bool"),
        ({"guided_regex": "a"}, "guided_regex", "can obey one of them"),
        ({"min_tokens": 3}, "min_tokens", "a grammar decides"),
        ({"messages": [{"role": "tool", "tool_call_id": "123456789", "content": "x"}]},
         "messages[0].tool_call_id", "'123456789'"),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]},
         "messages[0].tool_calls[0].function.arguments", "no JSON object"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(
    hermes: RunningServer, wrong: dict[str, Any], param: str, said: str
) -> None:
    body = asked(hermes, extra_body=wrong)
    with pytest.raises(openai.BadRequestError) as refused:
        await hermes.client().chat.completions.create(**body)
    assert said in refused.value.body["message"]  # type: ignore[index]
    assert refused.value.param == param
    await hermes.idle()


class Point(BaseModel):
    x: int
    on: bool


async def test_the_clients_own_helpers_read_the_calls(hermes: RunningServer) -> None:
    body = asked(hermes, tools=[openai.pydantic_function_tool(Point)], tool_choice="required", seed=1)
    digits = {str(hermes.token_id(digit)): -100 for digit in "0123456789"}
    body["logit_bias"] = {
        **body["logit_bias"],
        **digits,
        str(hermes.token_id("7")): 0,
        str(hermes.token_id(",")): 5,
    }
    reply = await hermes.client().chat.completions.parse(**body)
    calls = reply.choices[0].message.tool_calls
    assert calls and all(isinstance(call.function.parsed_arguments, Point) for call in calls)
    async with hermes.client().chat.completions.stream(**body) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    found = final.choices[0].message.tool_calls
    assert found and [call.function.parsed_arguments for call in found] == [
        call.function.parsed_arguments for call in calls
    ]


async def test_what_is_not_strict_may_hold_keywords_that_cannot_be_enforced(hermes: RunningServer) -> None:
    schema = {"properties": {"a": {"type": "string", "not": {"const": "x"}, "maxLength": 3}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    reply = await hermes.client().chat.completions.create(
        **asked(hermes, tools=[tool(parameters=schema)], tool_choice="required", parallel_tool_calls=False)
    )
    ((_, arguments),) = calls_of(reply.choices[0].message)
    assert len(json.loads(arguments)["a"]) <= 3


async def test_a_template_without_tools_refuses_them(server: RunningServer) -> None:
    body = asked(server)
    del body["logit_bias"]
    with pytest.raises(openai.BadRequestError, match="does not mention tools") as refused:
        await server.client().chat.completions.create(**body)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")


async def test_a_killed_engine_goes_on_with_a_call(tmp_path: Path) -> None:
    """Arguments half written when the engine dies are finished by the next one, as they would have been."""
    import asyncio
    import os
    import signal

    from penstock.models.tokenizer import Tokenizer
    from penstock.proxy.answer import AnswerReader, Layout
    from penstock.proxy.answer_layout import constrained
    from penstock.proxy.compat import FieldPolicy
    from penstock.proxy.openai_types import ChatRequest
    from penstock.proxy.tools import Tools
    from penstock.scheduler import AsyncEngine, SamplingParams

    folder = FAMILIES["hermes"].write(tmp_path / "hermes")
    tokenizer = Tokenizer.load(str(folder))
    words = {"type": "array", "minItems": 40, "maxItems": 40, "items": {"type": "string", "maxLength": 9}}
    long = tool(
        parameters={"properties": {"words": words}, "required": ["words"], "additionalProperties": False}
    )
    request = ChatRequest(
        model="m", messages=[], tools=[long], tool_choice="required", parallel_tool_calls=False
    )
    tools = Tools.of(request, tokenizer, FieldPolicy("refuse"))
    assert tools is not None
    layout = Layout(calls=tools.format)
    params = constrained(SamplingParams(seed=4, max_tokens=1500), layout, tools, tokenizer)
    engine = AsyncEngine(EngineConfig(model=str(folder), threads=1, quantize="w8a8"))
    await engine.start()
    try:
        texts = []
        for kill in (False, True):
            text, pieces = "", 0
            async for chunk in engine.generate([5, 6, 7], params):
                text += chunk.text
                pieces += 1
                if kill and pieces == 12:
                    assert '"words": [' in text and "}\n</tool_call>" not in text
                    os.kill(engine._host.pid, signal.SIGKILL)  # type: ignore[union-attr]
                await asyncio.sleep(0)
            texts.append(text)
    finally:
        await engine.shutdown()
    assert texts[0] == texts[1]
    reader = AnswerReader(layout)
    found = reader.read(texts[0]) + reader.end()
    assert reader.reason("stop") == "tool_calls"
    arguments = "".join(part.text for part in found if part.kind == "arguments")
    assert len(json.loads(arguments)["words"]) == 40
