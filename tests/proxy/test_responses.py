"""The Responses API over HTTP, with OpenAI's own client."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from running_server import RunningServer, running_server
from tool_templates import FAMILIES

from penstock.scheduler import EngineConfig
from penstock.scheduler.engine_process import EngineThread

SETTINGS = {"model": "tiny", "temperature": 0, "max_output_tokens": 12}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "a forecast",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Lima", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def thinker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """A model that thinks and calls."""
    root = tmp_path_factory.mktemp("responses")
    folder = FAMILIES["thinking"].write(root / "thinking")
    engine = EngineThread(EngineConfig(model=str(folder)))
    engine.start()
    async with running_server(engine.address, folder, cache_path=root / "completions") as running:
        yield running
    engine.stop()


def thinking(server: RunningServer, **change: Any) -> dict[str, Any]:
    """A request whose answer thinks for a while, then writes letters."""
    bias = {**server.spelling("abcd "), str(server.backend.tokenizer.markers["</think>"]): 98}
    return {
        "model": "thinking",
        "input": "think",
        "temperature": 1,
        "max_output_tokens": 40,
        "extra_body": {"seed": 3, "logit_bias": bias, "chat_template_kwargs": {"thoughts": "open"}},
        **change,
    }


def calling(server: RunningServer, **change: Any) -> dict[str, Any]:
    close = str(server.backend.tokenizer.markers["</think>"])
    bias = {"256": 3, str(server.token_id("]")): 3, close: 2}
    return thinking(
        server,
        tools=[WEATHER],
        tool_choice="required",
        max_output_tokens=900,
        extra_body={"seed": 3, "logit_bias": bias, "chat_template_kwargs": {"thoughts": "open"}},
        **change,
    )


async def raw_events(server: RunningServer, **request: Any) -> list[dict[str, Any]]:
    """The events of a stream as they are on the wire."""
    body = {**request.pop("extra_body", {}), **request, "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/responses", json=body) as reply,
    ):
        assert reply.status == 200 and reply.content_type == "text/event-stream"
        blocks = (await reply.text()).removesuffix("\n\n").split("\n\n")
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def test_a_text_is_what_chat_answers(server: RunningServer) -> None:
    client = server.client()
    reply = await client.responses.create(**SETTINGS, instructions="be brief", input="hello")
    Response.model_validate(reply.model_dump(), strict=True)
    chat = await client.chat.completions.create(
        model="tiny",
        temperature=0,
        max_tokens=12,
        messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
    )
    assert reply.output_text == chat.choices[0].message.content
    assert reply.usage and chat.usage
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (chat.usage.prompt_tokens, 12)
    assert reply.status == "incomplete" and reply.incomplete_details
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in reply.output] == ["incomplete"]


async def test_what_was_asked_is_told_back(server: RunningServer) -> None:
    asked = {
        "instructions": "be brief", "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 5, "max_tool_calls": 2,
        "metadata": {"trace": "7"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "store": False,
        "service_tier": "auto", "truncation": "disabled", "parallel_tool_calls": False, "tool_choice": "none",
    }  # fmt: skip
    reply = await server.client().responses.create(model="tiny", input="x", **asked)
    assert {name: getattr(reply, name, None) for name in asked} == asked | {"service_tier": "default"}
    assert reply.text and reply.text.format and reply.text.format.type == "text"
    default = await server.client().responses.create(model="tiny", input="x", max_output_tokens=1)
    assert (default.temperature, default.top_p) == (1, 1), "those in effect"


async def test_the_same_question_is_a_hit_whichever_api_asked_it(server: RunningServer) -> None:
    client = server.client()
    until_end = {"logit_bias": {**server.spelling("abc"), "256": 100}}
    chat = await client.chat.completions.create(
        model="tiny",
        temperature=0,
        max_tokens=40,
        messages=[{"role": "user", "content": "both"}],
        **until_end,
    )
    asked = {**SETTINGS, "max_output_tokens": 40, "input": "both", "extra_body": until_end}
    raw = await client.responses.with_raw_response.create(**asked)
    assert raw.headers["x-penstock-cache"] == "hit"
    reply = raw.parse()
    assert reply.output_text == chat.choices[0].message.content and reply.status == "completed"
    async with client.responses.stream(**asked) as stream:
        final = await stream.get_final_response()
    assert final.output_text == reply.output_text
    passed = await client.responses.with_raw_response.create(
        **asked, extra_headers={"x-penstock-cache-control": "no-cache"}
    )
    assert passed.headers["x-penstock-cache"] == "bypass"


async def test_every_event_of_a_stream_has_its_shape(server: RunningServer) -> None:
    events = await raw_events(server, **SETTINGS, input="hello")
    for event in events:
        EVENT.validate_python(event)
    assert [event["type"] for event in events if not event["type"].endswith("_text.delta")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    last = events[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == text
    assert events[-2]["item"] == last["output"][0]
    whole = await server.client().responses.create(**SETTINGS, input="hello")
    assert whole.output_text == text
    assert whole.usage and last["usage"] == whole.usage.model_dump() | {
        "input_tokens_details": last["usage"]["input_tokens_details"]
    }


async def test_a_long_answer_as_the_sdk_streams_it(server: RunningServer) -> None:
    asked = {**SETTINGS, "input": "write", "max_output_tokens": 60, "temperature": 1}
    asked["extra_body"] = {"seed": 5, "logit_bias": {"256": -100}}
    async with server.client().responses.stream(**asked) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
    assert len(snapshots) > 1  # on a busy machine a piece may be several tokens
    whole = await server.client().responses.create(**asked)
    assert snapshots[-1] == whole.output_text


async def test_parse_gives_an_object(server: RunningServer) -> None:
    class Verdict(BaseModel):
        answer: Literal["yes", "no"]
        sure: bool

    asked = {"model": "tiny", "input": "well?", "temperature": 1, "text_format": Verdict}
    for seed in range(3):
        reply = await server.client().responses.parse(**asked, extra_body={"seed": seed})
        assert reply.output_parsed and reply.output_parsed.answer in ("yes", "no")
        assert reply.status == "completed"
        assert reply.text and reply.text.format and reply.text.format.type == "json_schema"
    async with server.client().responses.stream(**asked, extra_body={"seed": 1}) as stream:
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Verdict)
    free = await server.client().responses.create(
        model="tiny", input="x", temperature=1, text={"format": {"type": "json_object"}}, max_output_tokens=300,
        extra_body={"logit_bias": {str(server.token_id("}")): 50}},
    )  # fmt: skip
    assert free.status == "incomplete" or isinstance(json.loads(free.output_text), dict)


async def test_thoughts_and_text_are_items_of_their_own(thinker: RunningServer) -> None:
    asked = thinking(thinker)
    reply = await thinker.client().responses.create(**asked)
    thoughts, message = reply.output
    assert thoughts.type == "reasoning" and thoughts.content and thoughts.summary == []
    assert set(thoughts.content[0].text) <= set("abcd ") and thoughts.status == "completed"
    assert message.type == "message" and message.status == "incomplete" and reply.output_text
    assert reply.usage
    counted = reply.usage.output_tokens_details.reasoning_tokens
    # A letter is a token, and so is a mark; white space between the two parts may have been cut.
    written = reply.output_text.replace("</think>", "/")
    assert len(thoughts.content[0].text) < counted <= reply.usage.output_tokens - len(written)
    events = await raw_events(thinker, **asked)
    for event in events:
        EVENT.validate_python(event)
    assert events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] == counted
    told = "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta")
    assert told == thoughts.content[0].text
    (final,) = (event["response"] for event in events if event["type"] == "response.incomplete")
    assert [item["type"] for item in final["output"]] == ["reasoning", "message"]
    assert final["output"][1]["content"][0]["text"] == reply.output_text


async def test_a_call_and_its_output_make_the_next_turn(thinker: RunningServer) -> None:
    client, asked = thinker.client(), calling(thinker)
    first = await client.responses.create(**asked)
    thoughts, call = first.output
    assert thoughts.type == "reasoning" and call.type == "function_call" and call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Lima", "Oslo") and call.status == "completed"
    assert first.status == "completed"
    async with client.responses.stream(**asked) as stream:
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "function_call"]
    assert final.output[1].parsed_arguments == json.loads(call.arguments)  # type: ignore[union-attr]  # a call
    events = await raw_events(thinker, **asked)
    for event in events:
        EVENT.validate_python(event)
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    # Everything that came goes back as it came, as clients do it.
    turn = [
        {"role": "user", "content": "think"},
        *(item.model_dump(exclude_unset=True) for item in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    second = await client.responses.create(
        **thinking(thinker, input=turn, tools=[WEATHER], tool_choice="none")
    )
    chat = await client.chat.completions.create(
        model="thinking",
        max_tokens=1,
        messages=[
            {"role": "user", "content": "think"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": "weather", "arguments": call.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.call_id, "content": "rain"},
        ],
        tools=[{"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}],  # type: ignore[list-item]  # is one
        extra_body={"chat_template_kwargs": {"thoughts": "open"}},
    )
    assert second.usage and chat.usage and second.usage.input_tokens == chat.usage.prompt_tokens


async def test_log_probabilities_are_those_of_chat(server: RunningServer, thinker: RunningServer) -> None:
    include: list[Any] = ["message.output_text.logprobs", "file_search_call.results"]
    asked = {**SETTINGS, "input": "hello", "include": include, "top_logprobs": 2}
    reply = await server.client().responses.create(**asked)
    chat = await server.client().chat.completions.create(
        model="tiny",
        temperature=0,
        max_tokens=12,
        messages=[{"role": "user", "content": "hello"}],
        logprobs=True,
        top_logprobs=2,
    )
    content = reply.output[0].content[0]  # type: ignore[union-attr]  # a message
    assert content.logprobs and chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert [token.model_dump() for token in content.logprobs] == [
        token.model_dump() for token in chat.choices[0].logprobs.content
    ]
    events = await raw_events(server, **asked)
    told = [
        token
        for event in events
        if event["type"] == "response.output_text.delta"
        for token in event["logprobs"]
    ]
    assert [token["token"] for token in told] == [token.token for token in content.logprobs]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == told
    with pytest.raises(openai.BadRequestError, match="not told apart") as refused:
        await thinker.client().responses.create(**thinking(thinker, include=include[:1]))
    assert refused.value.param == "include.message.output_text.logprobs"


FUNCTION_CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
THOUGHT: dict[str, Any] = {
    "type": "reasoning",
    "id": "r",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "hm"}],
}


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"store": True}, "store", "this value is not supported"),
        ({"background": True}, "background", "this value is not supported"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored"),
        ({"conversation": "c"}, "conversation", "nothing is stored"),
        ({"prompt": {"id": "p"}}, "prompt", "nothing is stored"),
        ({"truncation": "auto"}, "truncation", "this value"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort", "this value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "this value"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "add it"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "objekt"}}}},
            "text.format",
            "objekt",
        ),
        ({"include": ["reasoning.encrypted_content"]}, "include.reasoning.encrypted_content", "does not tell"),
        ({"top_logprobs": 2}, "top_logprobs", "add it"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "functions only"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading", "this value"),
        ({"tools": [WEATHER]}, "tools", "does not mention tools"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "file_search"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "this value"),
        ({"moderation": {"model": "m"}}, "moderation", "this value"),
        ({"max_tokens": 5}, "max_tokens", "Unknown parameter 'max_tokens'; did you mean"),
        ({"max_output_tokens": -1}, "max_output_tokens", "max_output_tokens is -1"),
        ({"temperature": -1}, "temperature", "temperature is -1"),
        ({"model": "other"}, "model", "does not exist"),
        ({"input": []}, "input", "empty"),
        ({"input": "y" * 5000}, "input", "tokens long"),
        ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role", "'boss'"),
        ({"input": [{"role": "user", "content": "x", "mood": 1}]}, "input[0].mood", "not supported"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
            "input[0].content[0].type",
            "text only",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "nothing is stored"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", "web_search_call"),
        (
            {"instructions": "i", "input": ["a", FUNCTION_CALL]},
            "input",
            "expected `object`",
        ),
        ({"input": [{"role": "user", "content": "x"}, FUNCTION_CALL]}, "input[1]", "does not mention tools"),
        ({"input": [{**FUNCTION_CALL, "arguments": 5}]}, "input[0].arguments", "expected `str`"),
        (
            {"input": [THOUGHT]},
            "input[0].content",
            "marks no thoughts",
        ),
        (
            {"input": [{**THOUGHT, "encrypted_content": "x"}]},
            "input[0].encrypted_content",
            "not supported",
        ),
    ],
)  # fmt: skip
async def test_what_is_not_honoured_is_refused_by_name(
    server: RunningServer, change: dict[str, Any], param: str, says: str
) -> None:
    body = {**SETTINGS, "input": "x", **change}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/responses", json=body) as reply,
    ):
        error = (await reply.json())["error"]
    assert reply.status in (400, 404), error
    assert says in error["message"], error
    assert (error["param"] or "").startswith(param), error


async def test_calls_are_refused_by_the_name_of_their_item(thinker: RunningServer) -> None:
    user = {"role": "user", "content": "x"}
    output = {"type": "function_call_output", "call_id": "b", "output": "5"}
    for items, param in (
        ([user, FUNCTION_CALL, output], "input[2].call_id"),
        ([user, {**FUNCTION_CALL, "arguments": "5"}], "input[1].arguments"),
        ([user, FUNCTION_CALL, {**FUNCTION_CALL, "arguments": "5"}], "input[2].arguments"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await thinker.client().responses.create(**thinking(thinker, input=items))
        assert refused.value.param == param and param in refused.value.message
    bad = {**WEATHER, "parameters": {"type": "object", "properties": {"x": {"type": "objekt"}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        await thinker.client().responses.create(**thinking(thinker, tools=[bad]))
    assert refused.value.param == "tools[0].parameters" and "function" not in refused.value.message


async def test_what_may_be_left_out_is_told(engine_address: str, model: Path) -> None:
    async with running_server(engine_address, model, unsupported="drop") as server:
        client = server.client()
        raw = await client.responses.with_raw_response.create(
            **SETTINGS,
            input=[
                {"role": "user", "content": "x"},
                {**THOUGHT, "summary": [{"type": "summary_text", "text": "s"}]},
            ],
            store=True,
            reasoning={"effort": "low"},
            tools=[{"type": "web_search"}],
            extra_body={"fancy": 1},
        )
        dropped = set(raw.headers["x-penstock-dropped"].split(","))
        assert dropped == {
            "store",
            "reasoning.effort",
            "tools[0]",
            "fancy",
            "input[1].summary",
            "input[1].content",
        }
        assert raw.parse().store is False  # type: ignore[attr-defined]  # the API has it, the client's type lacks it
        with pytest.raises(openai.BadRequestError, match="nothing is stored"):
            await client.responses.create(**SETTINGS, input="x", previous_response_id="resp_1")


async def test_input_tokens_are_those_that_are_used(thinker: RunningServer) -> None:
    client = thinker.client()
    asked: dict[str, Any] = {
        "model": "thinking",
        "input": "think",
        "instructions": "hard",
        "tools": [WEATHER],
    }
    counted = await client.responses.input_tokens.count(**asked)
    reply = await client.responses.create(**asked, max_output_tokens=1)
    assert reply.usage and counted.input_tokens == reply.usage.input_tokens
    assert counted.object == "response.input_tokens"
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        await client.responses.input_tokens.count(**asked, previous_response_id="resp_1")


async def test_nothing_is_stored(server: RunningServer) -> None:
    client = server.client()
    made = await client.responses.create(**SETTINGS, input="x")
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="nothing is stored here") as refused:
            await ask(made.id)
        assert made.id in refused.value.message


async def test_a_client_that_leaves_stops_its_answer(server: RunningServer) -> None:
    await server.idle()
    endless = {**SETTINGS, "input": "go on", "max_output_tokens": 400, "temperature": 1}
    stream = await server.client().responses.create(**endless, stream=True, extra_body={"ignore_eos": True})
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    assert server.engine.stats.num_running == 1
    await stream.response.aclose()
    await server.idle()


async def test_an_answer_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    folder = FAMILIES["hermes"].write(tmp_path / "hermes")
    engine = EngineThread(EngineConfig(model=str(folder)))
    engine.start()
    seen = []
    async with running_server(engine.address, folder) as server:
        stream = await server.client().responses.create(
            model="hermes",
            input="x",
            max_output_tokens=1500,
            temperature=1,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        with pytest.raises(openai.APIError, match="shut down"):
            async for event in stream:
                if not seen:
                    await server.backend.close()
                seen.append(event.type)
    engine.stop()
    assert seen[-1] == "response.failed"
