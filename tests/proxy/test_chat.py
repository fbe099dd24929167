"""Chat completions as the `openai` client sees them."""

import openai
import pytest
from running_server import RunningServer

ASK = [{"role": "user", "content": "hello"}]


async def test_a_body_is_an_openai_completion(server: RunningServer) -> None:
    reply = await server.client().chat.completions.create(
        model="tiny", messages=ASK, max_tokens=6, temperature=0, logit_bias=server.spelling()
    )
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content is not None and len(choice.message.content) == 6
    assert set(choice.message.content) <= set("abcdefgh ")
    assert choice.finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (8, 6)
    assert reply.usage.total_tokens == 14
    assert reply.model == "tiny"


async def test_a_stream_says_what_the_body_says(server: RunningServer) -> None:
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 40, "temperature": 1, "seed": 7}
    client = server.client()
    body = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == body.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == body.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == body.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


async def test_n_completions_have_their_own_texts(server: RunningServer) -> None:
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 12, "n": 2, "seed": 1, "temperature": 1.5}
    client = server.client()
    body = await client.chat.completions.create(**asked)
    assert [choice.index for choice in body.choices] == [0, 1]
    assert body.choices[0].message.content != body.choices[1].message.content
    texts = {0: "", 1: ""}
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in body.choices}
    assert body.usage is not None and body.usage.prompt_tokens == 8, "the prompt counts once"


async def test_logprobs_spell_the_text(server: RunningServer) -> None:
    client = server.client()
    asked = {
        "model": "tiny",
        "messages": ASK,
        "max_tokens": 5,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    body = await client.chat.completions.create(**asked)
    choice = body.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    spelt = bytes(byte for token in choice.logprobs.content for byte in token.bytes or [])
    assert spelt.decode("utf-8", "replace") == choice.message.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob, "greedy takes the likeliest"
        assert token.logprob <= 0
    streamed = []
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs else []
    assert [token.logprob for token in streamed] == [token.logprob for token in choice.logprobs.content]


async def test_a_stop_string_ends_the_text_before_it(server: RunningServer) -> None:
    client = server.client()
    asked = {
        "model": "tiny",
        "messages": ASK,
        "max_tokens": 30,
        "seed": 3,
        "logit_bias": server.spelling(),
    }
    whole = (await client.chat.completions.create(**asked)).choices[0].message.content
    assert whole is not None
    stop = whole[10:12]
    cut = (await client.chat.completions.create(**asked, stop=stop)).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


async def test_a_stop_token_has_no_logprob_and_no_text(server: RunningServer) -> None:
    end = {str(server.backend.tokenizer.eos_token_id): 100}
    reply = await server.client().chat.completions.create(
        model="tiny", messages=ASK, max_tokens=5, temperature=0, logit_bias=end, logprobs=True
    )
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "stop")
    assert choice.logprobs is not None and choice.logprobs.content == []


async def test_a_seed_repeats_and_another_does_not(server: RunningServer) -> None:
    async def text(seed: int) -> str | None:
        reply = await server.client().chat.completions.create(
            model="tiny",
            messages=ASK,
            max_tokens=20,
            seed=seed,
            temperature=2,
            extra_headers={"x-penstock-cache-control": "no-cache, no-store"},
        )
        return reply.choices[0].message.content

    first = await text(5)
    assert first == await text(5)
    assert first != await text(6)


async def test_zero_tokens_counts_the_prompt(server: RunningServer) -> None:
    reply = await server.client().chat.completions.create(model="tiny", messages=ASK, max_tokens=0)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("", "length")
    assert reply.usage is not None and (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (8, 0)


async def test_text_parts_are_lines(server: RunningServer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    client = server.client()
    reply = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], max_tokens=0
    )
    same = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a\nb"}], max_tokens=0
    )
    assert reply.usage == same.usage


async def test_developer_messages_are_system_messages(server: RunningServer) -> None:
    async def text(role: str) -> str | None:
        reply = await server.client().chat.completions.create(
            model="tiny",
            messages=[{"role": role, "content": "be brief"}, *ASK],  # type: ignore[list-item]  # the role varies
            max_tokens=9,
            temperature=0,
        )
        return reply.choices[0].message.content

    assert await text("developer") == await text("system")


async def test_errors_reach_the_client_typed(server: RunningServer) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="'gpt-9' does not exist here; served are: tiny"):
        await client.chat.completions.create(model="gpt-9", messages=ASK)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="tiny", messages=ASK, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as too_long:
        await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 600}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        await client.chat.completions.create(
            model="tiny", messages=ASK, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (tools.value.code, tools.value.param) == ("unsupported_parameter", "tools")
