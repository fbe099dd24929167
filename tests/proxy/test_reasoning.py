"""Thoughts over HTTP: apart from the answer, streamed and not, whether the model or the prompt opens them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server
from tool_templates import FAMILIES

from penstock.cache import WholePrompt
from penstock.proxy.thought_tokens import ThoughtTokens
from penstock.scheduler import EngineConfig
from penstock.scheduler.engine_process import EngineThread

ASK = [{"role": "user", "content": "think"}]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def thinker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    root = tmp_path_factory.mktemp("thinker")
    folder = FAMILIES["thinking"].write(root / "thinking")
    engine = EngineThread(EngineConfig(model=str(folder)))
    engine.start()
    async with running_server(
        engine.address, folder, cache_path=root / "completions", cache_prompts=True
    ) as running:
        yield running
    engine.stop()


def bias(server: RunningServer, **tokens: int) -> dict[str, int]:
    """Letters only, and markers as often as asked: `open`, `close`."""
    markers = server.backend.tokenizer.markers
    named = {"open": markers["<think>"], "close": markers["</think>"]}
    return {**server.spelling("abcd "), **{str(named[name]): value for name, value in tokens.items()}}


def asked(server: RunningServer, thoughts: str, **change: Any) -> dict[str, Any]:
    return {
        "model": "thinking", "messages": ASK, "temperature": 1, "seed": 3, "max_tokens": 40,
        "logit_bias": bias(server, close=98), "extra_body": {"chat_template_kwargs": {"thoughts": thoughts}}, **change,
    }  # fmt: skip


async def whole(server: RunningServer, **request: Any) -> tuple[str | None, str | None, str]:
    (choice,) = (await server.client().chat.completions.create(**request)).choices
    return getattr(choice.message, "reasoning_content", None), choice.message.content, choice.finish_reason


async def streamed(server: RunningServer, **request: Any) -> tuple[str | None, str | None, str]:
    thoughts: str | None = None
    content: str | None = None
    async for chunk in await server.client().chat.completions.create(**request, stream=True):
        delta = chunk.choices[0].delta
        if (piece := getattr(delta, "reasoning_content", None)) is not None:
            assert content is None, "thoughts come first"
            thoughts = (thoughts or "") + piece
        if delta.content is not None:
            content = (content or "") + delta.content
    return thoughts, content, chunk.choices[0].finish_reason


async def test_thoughts_that_the_prompt_opened(thinker: RunningServer) -> None:
    for seed in range(6):
        request = asked(thinker, "open", seed=seed)
        thoughts, content, reason = await whole(thinker, **request)
        assert thoughts and set(thoughts) <= set("abcd ")
        assert reason == "length" and (content is None or "<think>" not in content)
        assert await streamed(thinker, **request) == (thoughts, content, reason)
    never = asked(thinker, "open", logit_bias=bias(thinker, close=-100))
    thoughts, content, _ = await whole(thinker, **never)
    assert thoughts and content is None


async def test_thoughts_that_the_model_opens(thinker: RunningServer) -> None:
    opened = 0
    for seed in range(10):
        request = asked(thinker, "free", seed=seed, logit_bias=bias(thinker, open=101 - 1, close=98))
        thoughts, content, reason = await whole(thinker, **request)
        assert await streamed(thinker, **request) == (thoughts, content, reason)
        opened += thoughts is not None
        assert thoughts is not None or content is not None
    assert 0 < opened < 10


async def test_thoughts_that_the_prompt_closed_are_none(thinker: RunningServer) -> None:
    request = asked(thinker, "closed")
    thoughts, content, _ = await whole(thinker, **request)
    assert thoughts is None and content
    assert await streamed(thinker, **request) == (thoughts, content, "length")


async def test_a_kept_prompt_says_what_it_opened(thinker: RunningServer) -> None:
    """So that an answer read back has its thoughts between both marks."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    assert thinker.cache is not None and thinker.settings.cache_path is not None
    for thoughts, begun in (("open", "<think>\n"), ("closed", "")):
        messages = [{"role": "user", "content": f"thoughts are {thoughts}"}]
        request = asked(thinker, thoughts, messages=messages, response_format=schema, max_tokens=400)
        assert (await whole(thinker, **request))[2] == "stop"
        await asyncio.to_thread(thinker.cache.flush)
        kept = (thinker.settings.cache_path / "data.mdb").read_bytes()
        for opened in ("<think>\n", ""):
            prompt = WholePrompt("thinking", messages=messages, begun=opened)
            assert (msgspec.json.encode(prompt) in kept) == (opened == begun)


async def test_what_must_be_json_follows_the_thoughts(thinker: RunningServer) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    for thoughts in ("open", "free", "closed"):
        for seed in range(3):
            request = asked(thinker, thoughts, seed=seed, response_format=schema, max_tokens=400)
            found, content, reason = await whole(thinker, **request)
            assert content in ('"yes"', '"no"') and reason == "stop"
            assert thoughts != "closed" or found is None
            assert thoughts != "open" or found is not None
    regex = {"guided_regex": "[xy]{3}", "chat_template_kwargs": {"thoughts": "open"}}
    found, content, _ = await whole(thinker, **asked(thinker, "open", extra_body=regex, max_tokens=400))
    assert found and content and set(content) <= {"x", "y"} and len(content) == 3


@pytest.mark.parametrize(
    ("opened", "token_ids", "count"),
    [
        (True, [5, 6, 2, 7], 3),
        (True, [5, 6], 2),
        (True, [], 0),
        (False, [1, 5, 2, 7], 3),
        (False, [5, 7], 0),
        (False, [5, 2], 0),
    ],
)
def test_thoughts_are_counted_with_their_marks(opened: bool, token_ids: list[int], count: int) -> None:
    assert ThoughtTokens(open=1, close=2, opened=opened).count(token_ids) == count


async def test_usage_tells_how_much_was_thought(thinker: RunningServer) -> None:
    request = asked(thinker, "open", seed=1)
    reply = await thinker.client().chat.completions.create(**request)
    thoughts = getattr(reply.choices[0].message, "reasoning_content", "")
    assert reply.usage and reply.usage.completion_tokens_details
    counted = reply.usage.completion_tokens_details.reasoning_tokens
    assert counted is not None and len(thoughts) < counted <= reply.usage.completion_tokens
    closed = await thinker.client().chat.completions.create(**asked(thinker, "closed"))
    assert closed.usage and closed.usage.completion_tokens_details is None


async def test_earlier_thoughts_are_left_to_the_template(
    thinker: RunningServer, server: RunningServer
) -> None:
    before = {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    reply = await thinker.client().chat.completions.create(
        model="thinking", messages=[*ASK, before, *ASK], max_tokens=1
    )
    without = await thinker.client().chat.completions.create(
        model="thinking", messages=[*ASK, {"role": "assistant", "content": "yes"}, *ASK], max_tokens=1
    )
    assert reply.usage and without.usage and reply.usage.prompt_tokens == without.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="marks no thoughts") as refused:
        await server.client().chat.completions.create(model="tiny", messages=[*ASK, before, *ASK])
    assert refused.value.param == "messages[1].reasoning_content"


async def test_the_whole_answer_is_kept(thinker: RunningServer) -> None:
    request = asked(thinker, "open", seed=1, stop=["d"], logit_bias=bias(thinker, close=100))
    first = await thinker.client().chat.completions.with_raw_response.create(**request)
    again = await thinker.client().chat.completions.with_raw_response.create(**request)
    assert (first.headers["x-penstock-cache"], again.headers["x-penstock-cache"]) == ("miss", "hit")
    assert first.parse().choices == again.parse().choices
    assert (await streamed(thinker, **request))[0] == getattr(
        first.parse().choices[0].message, "reasoning_content", None
    )
