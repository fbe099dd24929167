"""Parameters of other servers: refused by default, dropped and named when told to."""

from pathlib import Path

import pytest
from openai import BadRequestError
from running_server import RunningServer, running_server

from penstock.errors import UnsupportedParameterError
from penstock.proxy.compat import FieldPolicy

ASK = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "neutral",
    [
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "auto"},
        {"modalities": ["text"]},
        {"function_call": "none"},
        {"functions": []},
        {"audio": None},
        {"stream_options": {"include_obfuscation": False}},
    ],
)
def test_what_changes_nothing_is_accepted(neutral: dict[str, object]) -> None:
    policy = FieldPolicy("refuse")
    honoured = policy.chat({"model": "m", "messages": [], **neutral})
    assert honoured.keys() <= {"model", "messages", "stream_options"}
    assert policy.dropped == []


@pytest.mark.parametrize(
    "other",
    [
        {"store": True},
        {"store": 0},
        {"service_tier": "priority"},
        {"modalities": ["text", "audio"]},
        {"reasoning_effort": "high"},
        {"no_such_thing": None},
    ],
)
def test_the_rest_is_refused_or_dropped(other: dict[str, object]) -> None:
    fields = {"model": "m", "messages": [], **other}
    with pytest.raises(UnsupportedParameterError) as refused:
        FieldPolicy("refuse").chat(fields)
    assert refused.value.param == next(iter(other))
    policy = FieldPolicy("drop")
    assert policy.chat(fields) == {"model": "m", "messages": []}
    assert policy.dropped == list(other)


async def test_dropping_names_what_was_left_out(engine_address: str, model: Path) -> None:
    async with running_server(
        engine_address, model, unsupported="drop", model_aliases={"*": "tiny"}
    ) as lenient:
        raw = await lenient.client().chat.completions.with_raw_response.create(
            model="gpt-anything",
            messages=[{"role": "user", "content": "hi", "name": "bob"}],
            max_tokens=0,
            max_completion_tokens=0,
            logprobs=True,
            top_logprobs=0,
            stream=False,
            stream_options={"include_obfuscation": True, "include_usage": True},
            seed=-(2**53) + 1,
            store=True,
            tool_choice="required",
            parallel_tool_calls=False,
            tools=[{"type": "function", "function": {"name": "f"}}],
            verbosity="low",
            logit_bias={"foo": 0},
            web_search_options={},
        )
        assert sorted(raw.headers["x-penstock-dropped"].split(",")) == [
            "logit_bias.foo",
            "messages[0].name",
            "store",
            "stream_options.include_obfuscation",
            "tool_choice",
            "tools",
            "verbosity",
            "web_search_options",
        ]
        assert raw.parse().choices[0].finish_reason == "length"
        assert raw.headers["x-penstock-model"] == "tiny"
        with pytest.raises(BadRequestError):  # what the model is asked is never dropped
            await lenient.client().chat.completions.create(
                model="x",
                messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            )


async def test_models_are_listed_under_all_their_names(engine_address: str, model: Path) -> None:
    async with running_server(
        engine_address, model, served_model_name="house", model_aliases={"gpt-4o": "house"}
    ) as named:
        client = named.client()
        assert [card.id async for card in client.models.list()] == ["house", "gpt-4o"]
        assert (await client.models.retrieve("gpt-4o")).owned_by == "penstock"
        reply = await client.chat.completions.create(model="gpt-4o", messages=ASK, max_tokens=1)  # type: ignore[arg-type]
        assert reply.model == "house"


async def test_tokens_there_and_back(server: RunningServer) -> None:
    client = server.client()
    base = client.with_options(base_url=server.url)
    there = await base.post(
        "/tokenize", body={"prompt": "héllo<|end|>", "return_token_strs": True}, cast_to=object
    )
    assert there["count"] == len(there["tokens"]) == 7  # type: ignore[index]
    assert there["token_strs"][0] == "h" and there["max_model_len"] == 512  # type: ignore[index]
    back = await base.post("/detokenize", body={"tokens": there["tokens"]}, cast_to=object)  # type: ignore[index]
    assert back == {"prompt": "héllo<|end|>"}
    chat = await base.post("/tokenize", body={"messages": ASK}, cast_to=object)
    assert chat["count"] == 5  # type: ignore[index]
