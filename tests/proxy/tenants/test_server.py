"""Tenants at a running server: who is let in, what is counted, and what comes free."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from openai import PermissionDeniedError, RateLimitError
from running_server import RunningServer, running_server

from penstock.proxy.tenants.ledger import Account
from penstock.proxy.tenants.tenant import Limits, Tenant

Ask = dict[str, Any]
ENDLESS: Ask = {"max_tokens": 480, "temperature": 1, "extra_body": {"ignore_eos": True}}


@pytest_asyncio.fixture(loop_scope="session")
async def server(engine_address: str, model: Path, tmp_path: Path) -> AsyncIterator[RunningServer]:
    paths = {"cache_path": tmp_path / "completions", "tenants_path": tmp_path / "tenants"}
    async with running_server(engine_address, model, local_hour_price=3600.0, **paths) as running:
        yield running


def key_for(server: RunningServer, name: str = "acme", limits: Limits | None = None, **fields: Any) -> str:
    assert server.store is not None
    server.store.directory.put_tenant(Tenant(name=name, limits=limits or Limits(), **fields))
    return server.store.directory.create_key(name).text


async def ask(server: RunningServer, key: str, question: str = "a few letters", **fields: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return await server.client(key).chat.completions.create(model="tiny", messages=messages, **fields)


def account(server: RunningServer, name: str = "acme", model: str = "tiny") -> Account:
    assert server.store is not None
    lines = {line.model: line.account for line in server.store.counters.lines(name)}
    return lines.get(model, Account())


def running(server: RunningServer, name: str = "acme") -> int:
    assert server.store is not None
    return server.store.counters.standing(server.store.directory.tenant(name)).running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_key_of_the_table_is_wanted_once_there_is_one(server: RunningServer) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    async with aiohttp.ClientSession() as session:
        chat = f"{server.url}/v1/chat/completions"
        assert (await session.post(chat, json=body)).status == 200
        key = key_for(server)
        assert (await session.post(chat, json=body)).status == 401
        assert (await session.post(chat, json=body, headers={"x-api-key": key})).status == 200
        assert (await session.get(f"{server.url}/health/live")).status == 200


async def test_a_limit_is_told_with_every_answer(server: RunningServer) -> None:
    key = key_for(server, limits=Limits(rpm=2, tpm=100_000))
    client = server.client(key).chat.completions.with_raw_response
    body: Ask = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for left in ("1", "0"):
        reply = await client.create(**body, stream=left == "0")
        assert reply.headers["x-ratelimit-remaining-requests"] == left
        assert reply.headers["x-ratelimit-limit-tokens"] == "100000"
    with pytest.raises(RateLimitError, match="acme has 2 requests a minute") as refused:
        await client.create(**body)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert 25 <= int(refused.value.response.headers["Retry-After"]) <= 30
    await until(lambda: account(server).requests == 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_counted_as_its_usage_says(server: RunningServer, stream: bool) -> None:
    key = key_for(server)
    fields: Ask = {"max_tokens": 9, "temperature": 1}
    if stream:
        chunks = await ask(server, key, stream=True, stream_options={"include_usage": True}, **fields)
        usage = [chunk.usage async for chunk in chunks][-1]
    else:
        usage = (await ask(server, key, **fields)).usage
    await until(lambda: running(server) == 0)
    line = account(server)
    assert (line.requests, line.unknown_usage, line.unknown_cost, line.reused) == (1, 0, 0, 0)
    assert (line.prompt_tokens, line.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert line.cached_tokens == usage.prompt_tokens_details.cached_tokens
    assert line.engine_seconds > 0 and line.cost == pytest.approx(line.engine_seconds)


async def test_an_answer_from_the_cache_costs_nothing_and_saves(server: RunningServer) -> None:
    key = key_for(server, limits=Limits(budget=100.0))
    fields: Ask = {"seed": 1, "temperature": 2.0, "stop": ["e"], "logit_bias": server.spelling("abcde")}
    first = await ask(server, key, **fields)
    assert server.cache is not None
    await asyncio.to_thread(server.cache.flush)
    before = account(server)
    again = await ask(server, key, **fields)
    await until(lambda: running(server) == 0)
    line = account(server)
    assert (line.requests, line.reused) == (2, 1)
    assert line.cost == before.cost > 0 and line.engine_seconds == before.engine_seconds
    assert line.completion_tokens == first.usage.completion_tokens + again.usage.completion_tokens
    assert line.saved["cache"].seconds > 0 and line.saved["cache"].cost > 0


async def test_one_generation_that_many_share_is_paid_for_once(server: RunningServer) -> None:
    key = key_for(server)
    fields: Ask = {"max_tokens": 200, "temperature": 0, "extra_body": {"ignore_eos": True}}
    answers = await asyncio.gather(*(ask(server, key, "all at once", **fields) for _ in range(5)))
    await until(lambda: running(server) == 0)
    line = account(server)
    assert (line.requests, line.reused, line.unknown_usage) == (5, 4, 0)
    assert line.completion_tokens == 5 * answers[0].usage.completion_tokens


async def test_a_client_that_leaves_frees_its_place_and_has_used_what_came(server: RunningServer) -> None:
    key = key_for(server, limits=Limits(concurrency=1))
    stream = await ask(server, key, stream=True, **ENDLESS)
    for _ in range(5):
        await anext(stream)
    with pytest.raises(RateLimitError, match="1 requests running; its limit is 1 at once"):
        await ask(server, key, max_tokens=1)
    await stream.close()
    await until(lambda: running(server) == 0)
    line = account(server)
    assert line.requests == 1 and 3 <= line.completion_tokens < 480 and line.prompt_tokens > 0
    await ask(server, key, max_tokens=1)


async def test_what_the_engine_refuses_costs_nothing_but_a_request(server: RunningServer) -> None:
    key = key_for(server, limits=Limits(rpm=2, concurrency=1))
    for question, fields in (("x" * 9000, {}), ("x", {"temperature": -1})):
        with pytest.raises(Exception, match="400"):
            await ask(server, key, question, **fields)
    assert account(server) == Account() and running(server) == 0
    with pytest.raises(RateLimitError, match="rpm"):
        await ask(server, key)


async def test_a_budget_ends_with_the_money(server: RunningServer) -> None:
    key = key_for(server, limits=Limits(budget=1e-9, window="total"))
    await ask(server, key, max_tokens=5, temperature=1)
    with pytest.raises(RateLimitError, match="of the whole budget of 1e-09") as refused:
        await ask(server, key, max_tokens=5, temperature=1)
    assert refused.value.code == "insufficient_quota"


async def test_what_a_client_asks_for_by_default_is_no_more_than_the_context_holds(
    server: RunningServer,
) -> None:
    key = key_for(server, limits=Limits(tpm=2000))
    headers = {"x-api-key": key}
    body = {"model": "tiny", "max_tokens": 32_000, "messages": [{"role": "user", "content": "x"}]}
    stopping = {"stop_sequences": ["a", "b", "c", "e", " "]}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{server.url}/v1/messages", json=body | stopping) as reply,
    ):
        assert reply.status == 200, await reply.text()
        usage = (await reply.json())["usage"]
    line = account(server)
    assert line.completion_tokens == usage["output_tokens"]
    assert reply.headers["x-ratelimit-limit-tokens"] == "2000"


async def test_only_models_that_a_tenant_may_use(server: RunningServer) -> None:
    key = key_for(server, models=("other",))
    with pytest.raises(PermissionDeniedError, match="may not use the model 'tiny'; it may use: other"):
        await ask(server, key)
    assert (await server.client(key).models.list()).data == []
    assert [card.id for card in (await server.client(key_for(server, "bolt")).models.list()).data] == ["tiny"]


async def test_a_tenants_weight_and_priority_reach_the_engine(server: RunningServer) -> None:
    key = key_for(server, weight=3.0, priority=2)
    stream = await ask(server, key, stream=True, **ENDLESS)
    await anext(stream)
    (sent,) = (one.request for one in server.engine._streams.values())
    assert (sent.tenant, sent.weight, sent.urgency.priority) == ("acme", 3.0, 2)
    await stream.close()
    with pytest.raises(Exception, match="priority is 1; the best for tenant acme is 2"):
        await ask(server, key, extra_body={"penstock": {"priority": 1}})
