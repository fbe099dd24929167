"""Exact hits: what is kept, for whom, how it is replayed, and how fast."""

import asyncio
import statistics
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from running_server import RunningServer, running_server

CHAT = "/v1/chat/completions"


async def post(
    server: RunningServer, body: dict[str, Any], path: str = CHAT, **headers: str
) -> tuple[str, dict[str, Any], float]:
    """Cache outcome, body, and milliseconds in the server."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            server.url + path,
            json=body,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        ) as reply,
    ):
        content = await reply.json()
        assert reply.status == 200, content
        spent = float(reply.headers["Server-Timing"].removeprefix("total;dur="))
        return reply.headers["x-penstock-cache"], content, spent


def ends_by_itself(server: RunningServer, text: str, **change: Any) -> dict[str, Any]:
    """A seeded request that ends at a stop string, so that it is kept."""
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "seed": 1,
        "temperature": 2.0,
        "stop": ["e"],
        "logit_bias": server.spelling("abcde"),
        **change,
    }


async def test_a_repeated_request_is_a_hit_with_the_same_content(server: RunningServer) -> None:
    body = ends_by_itself(server, "repeat me", n=2, logprobs=True, top_logprobs=2)
    outcome, first, _ = await post(server, body)
    assert outcome == "miss"
    assert {choice["finish_reason"] for choice in first["choices"]} == {"stop"}
    outcome, second, _ = await post(server, body)
    assert outcome == "hit"
    assert second["choices"] == first["choices"]
    assert second["id"] != first["id"]
    assert second["usage"]["completion_tokens"] == first["usage"]["completion_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"]


async def test_stream_and_body_share_an_entry(server: RunningServer) -> None:
    body = ends_by_itself(server, "share me")
    client = server.client()
    streamed = await client.chat.completions.with_raw_response.create(**body, stream=True)
    assert streamed.headers["x-penstock-cache"] == "miss"
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in streamed.parse()])
    outcome, whole, _ = await post(server, body, Authorization="Bearer unused")
    assert (outcome, whole["choices"][0]["message"]["content"]) == ("hit", text)
    replay = await client.chat.completions.with_raw_response.create(**body, stream=True)
    assert replay.headers["x-penstock-cache"] == "hit"
    chunks = [chunk async for chunk in replay.parse()]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "other"}]},
        {"stop": ["d"]},
        {"max_tokens": 400},
        {"presence_penalty": 0.5},
        {"n": 2},
        {"logprobs": True},
        {"temperature": 1.5},
        {"seed": 2},
    ],
)
async def test_what_changes_the_answer_changes_the_key(server: RunningServer, change: dict[str, Any]) -> None:
    body = ends_by_itself(server, f"key {change}")
    await post(server, body)
    assert (await post(server, {**body, **change}))[0] == "miss"
    assert (await post(server, body))[0] == "hit"


async def test_what_changes_nothing_hits(server: RunningServer) -> None:
    ends_at_once = {str(server.backend.tokenizer.eos_token_id): 100}
    body = ends_by_itself(server, "neutral", temperature=0.0, logit_bias=ends_at_once)
    await post(server, body)
    for change in (
        {"user": "bob"},
        {"seed": 5},
        {"top_p": 1.0},
        {"temperature": 0},
        {"metadata": {"a": "b"}},
    ):
        assert (await post(server, {**body, **change}))[0] == "hit", change


async def test_only_what_is_deterministic_is_kept_unless_asked(server: RunningServer) -> None:
    body = ends_by_itself(server, "sampled", seed=None)
    assert [(await post(server, body))[0] for _ in range(2)] == ["bypass", "bypass"]
    asked = {"x_penstock_cache_control": "sampled"}
    assert [(await post(server, body, **asked))[0] for _ in range(2)] == ["miss", "hit"]
    seeded = {**body, "seed": 9}
    assert [(await post(server, seeded))[0] for _ in range(2)] == ["miss", "hit"]


async def test_a_cut_completion_is_never_kept(server: RunningServer) -> None:
    body = ends_by_itself(server, "cut me", max_tokens=1, stop=None)
    outcomes = [(await post(server, body))[0] for _ in range(2)]
    assert outcomes == ["miss", "miss"]


async def test_an_abandoned_stream_is_never_kept(server: RunningServer) -> None:
    body = ends_by_itself(server, "leave me", stop=None, max_tokens=300, n=2)
    async with aiohttp.ClientSession() as session:
        reply = await session.post(server.url + CHAT, json={**body, "stream": True})
        await reply.content.readany()
        reply.close()
    await server.idle()
    assert (await post(server, body))[0] == "miss"


async def test_directives(server: RunningServer) -> None:
    body = ends_by_itself(server, "directives")
    assert (await post(server, body, x_penstock_cache_control="no-store"))[0] == "miss"
    assert (await post(server, body))[0] == "miss", "no-store kept nothing"
    assert (await post(server, body, x_penstock_cache_control="no-cache"))[0] == "bypass"
    assert (await post(server, body))[0] == "hit"
    assert (await post(server, {**body, "penstock": {"cache": {"no_cache": True}}}))[0] == "bypass"
    brief = ends_by_itself(server, "brief", penstock={"cache": {"ttl": 0.3}})
    assert [(await post(server, brief))[0] for _ in range(2)] == ["miss", "hit"]
    await asyncio.sleep(0.35)
    assert (await post(server, brief))[0] == "miss"


async def test_tenants_and_namespaces_never_meet(server: RunningServer) -> None:
    body = ends_by_itself(server, "mine")
    callers = [
        {"Authorization": "Bearer one"},
        {"Authorization": "Bearer two"},
        {},
        {"x_penstock_namespace": "a"},
        {"x_penstock_namespace": "b"},
    ]
    assert [(await post(server, body, **caller))[0] for caller in callers] == ["miss"] * 5
    assert [(await post(server, body, **caller))[0] for caller in callers] == ["hit"] * 5


async def test_batches_and_completions_are_kept_too(server: RunningServer) -> None:
    chat = ends_by_itself(server, "")
    body = {**chat, "prompt": ["x", "y"], "logprobs": 1, "max_tokens": 50}
    del body["messages"]
    outcome, first, _ = await post(server, body, "/v1/completions")
    assert outcome == "miss"
    outcome, second, _ = await post(server, body, "/v1/completions")
    assert outcome == "hit"
    assert second["choices"] == first["choices"]


async def test_hits_survive_a_restart_and_take_a_part_of_the_time(
    engine_address: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "completions"
    async with running_server(engine_address, model, cache_path=path) as before:
        body = ends_by_itself(before, "survive")
        _, first, computed = await post(before, body)
    async with running_server(engine_address, model, cache_path=path) as after:
        replies = [await post(after, body) for _ in range(50)]
    assert {outcome for outcome, _, _ in replies} == {"hit"}
    assert all(reply["choices"] == first["choices"] for _, reply, _ in replies)
    hits = statistics.median(spent for _, _, spent in replies)
    assert hits < computed / 2


async def test_what_the_operator_excludes_is_neither_kept_nor_found(
    engine_address: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "completions"
    async with running_server(engine_address, model, cache_path=path) as before:
        bodies = [ends_by_itself(before, text) for text in ("What TIME is it?", "order #12", "timeless")]
        assert [(await post(before, body))[0] for body in bodies] == ["miss"] * 3
    patterns = (r"(?i)\btime\b", r"order #\d+")
    async with running_server(
        engine_address, model, cache_path=path, cache_no_store_patterns=patterns
    ) as server:
        outcomes = [(await post(server, body))[0] for body in bodies]
        assert outcomes == ["bypass", "bypass", "hit"], "what was kept before is not found"
        # Only the question counts, and any prompt where there are several.
        earlier = [{"role": "user", "content": "the time"}, {"role": "assistant", "content": "is late"}]
        body = ends_by_itself(server, "and?")
        assert (await post(server, {**body, "messages": earlier + body["messages"]}))[0] == "miss"
        several = {name: value for name, value in body.items() if name != "messages"}
        for prompts, outcome in (
            (["x", "the time?"], "bypass"),
            (["x", "y"], "miss"),
            ("order #7", "bypass"),
        ):
            assert (await post(server, {**several, "prompt": prompts}, "/v1/completions"))[0] == outcome
        assert server.cache is not None
        await asyncio.to_thread(server.cache.flush)
        assert server.cache.stats().entries == 5, "three of before, two of now"
