"""What an upstream's answers cost a tenant: by its own usage figures, and unknown where it gives none."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from fake_upstream import FakeUpstream, fake_upstream
from openai import APIStatusError, BadRequestError, PermissionDeniedError
from running_server import RunningServer, running_server

from penstock.config import Settings
from penstock.proxy.observe.hourly import total_of
from penstock.proxy.tenants.ledger import Account
from penstock.proxy.tenants.spend import Saving
from penstock.proxy.tenants.tenant import Limits, Tenant
from penstock.proxy.tenants.totals import Saved
from penstock.tables import Route, Upstream, UpstreamModel

# Of an answer with 100 prompt tokens, 40 of them cached, and 10 more.
COST = (60 * 2 + 40 * 0.5 + 10 * 8) / 1e6
NAME = "cloud/real"


@pytest_asyncio.fixture(loop_scope="session")
async def cloud(
    engine_address: str, model: Path, tmp_path: Path
) -> AsyncIterator[tuple[RunningServer, FakeUpstream]]:
    async with fake_upstream() as upstream:
        models = {
            "m": UpstreamModel(name="real", input=2.0, cached_input=0.5, output=8.0),
            "free": UpstreamModel(),
            "embeds": UpstreamModel(input=4.0),
        }
        settings: dict[str, Any] = {
            "upstreams": {"cloud": Upstream(base_url=upstream.url, models=models, retries=0)},
            "routes": {
                "quick": Route(targets=("cloud/m", "tiny")),
                "unpriced": Route(targets=("tiny", "cloud/free")),
            },
            "cache_path": tmp_path / "completions",
            "tenants_path": tmp_path / "tenants",
        }
        assert Settings(**settings).upstreams
        async with running_server(engine_address, model, **settings) as server:
            yield server, upstream


def key_for(server: RunningServer, **fields: Any) -> str:
    assert server.store is not None
    server.store.directory.put_tenant(Tenant(name="acme", **fields))
    return server.store.directory.create_key("acme").text


async def ask(server: RunningServer, key: str, model: str = "m", **fields: Any) -> Any:
    messages = [{"role": "user", "content": "hello there"}]
    return await server.client(key).chat.completions.create(model=model, messages=messages, **fields)


def accounts(server: RunningServer) -> dict[str, Account]:
    assert server.store is not None
    return {line.model: line.account for line in server.store.counters.lines("acme")}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_costs_what_its_usage_says(cloud, stream: bool) -> None:
    server, _ = cloud
    key = key_for(server, limits=Limits(budget=1.0))
    answer = await ask(server, key, stream=stream)
    if stream:
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in answer]) == "hello"
        async with asyncio.timeout(5):
            while NAME not in accounts(server):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    line = accounts(server)[NAME]
    assert (line.requests, line.unknown_usage, line.unknown_cost) == (1, 0, 0)
    assert (line.prompt_tokens, line.cached_tokens, line.completion_tokens) == (100, 40, 10)
    assert line.cost == pytest.approx(COST)
    standing = server.store.counters.standing(server.store.directory.tenant("acme"))
    assert (standing.spent, standing.held) == (pytest.approx(COST), {})


async def test_what_an_upstream_does_not_say_is_unknown_and_charged_as_expected(cloud) -> None:
    server, upstream = cloud
    upstream.usage = None
    await ask(server, key_for(server, limits=Limits(budget=1.0)), max_tokens=1000)
    line = accounts(server)[NAME]
    assert (line.requests, line.unknown_usage, line.unknown_cost, line.completion_tokens) == (1, 1, 1, 0)
    assert line.cost == 0 and line.presumed_cost > 1000 * 8 / 1e6


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, -1, True, 1.5, "12"])
async def test_a_count_that_is_none_is_unknown_and_nobody_else_is_harmed(cloud, count: Any) -> None:
    server, upstream = cloud
    key = key_for(server)
    sound, upstream.usage = upstream.usage, {"prompt_tokens": count, "completion_tokens": count}
    await ask(server, key)
    upstream.usage = sound
    await ask(server, key, max_tokens=9)
    line = accounts(server)[NAME]
    assert (line.requests, line.unknown_usage, line.prompt_tokens) == (2, 1, 100)


async def test_what_an_upstream_refuses_costs_nothing_and_a_fallback_is_paid_for(cloud) -> None:
    server, upstream = cloud
    key = key_for(server)
    upstream.status = 500
    with pytest.raises(APIStatusError):
        await ask(server, key)
    assert accounts(server) == {}
    assert (await ask(server, key, "quick", max_tokens=3)).usage.completion_tokens == 3
    assert {model: line.requests for model, line in accounts(server).items()} == {"tiny": 1}


async def test_routing_saves_what_the_dearest_would_have_cost(cloud) -> None:
    server, upstream = cloud
    key = key_for(server)
    await ask(server, key, "quick")
    assert accounts(server)[NAME].saved == {}, "it was the dearest itself"
    upstream.status = 500
    usage = (await ask(server, key, "quick", max_tokens=3)).usage
    saved = accounts(server)["tiny"].saved["routing"]
    assert saved.cost == pytest.approx((usage.prompt_tokens * 2 + usage.completion_tokens * 8) / 1e6)


async def test_what_routing_saves_is_unknown_where_a_model_has_no_price(cloud) -> None:
    server, _ = cloud
    key = key_for(server)
    whole = await server.client(key).chat.completions.with_raw_response.create(
        model="unpriced", messages=[{"role": "user", "content": "hello there"}], max_tokens=3
    )
    record = await server.record(whole.headers["x-request-id"])
    assert (record.model, record.cost) == ("tiny", 0.0)
    assert record.savings == (Saving("routing"),) and record.saved_cost is None
    assert total_of(record).saved == {"routing": Saved(unknown=1)}
    assert accounts(server)["tiny"].saved == {}


async def test_kept_and_shared_answers_are_paid_for_once(cloud) -> None:
    server, upstream = cloud
    key = key_for(server)
    upstream.hold.clear()
    asking = [asyncio.create_task(ask(server, key, temperature=0)) for _ in range(3)]
    while not upstream.asked:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    upstream.hold.set()
    await asyncio.gather(*asking)
    assert server.cache is not None
    await asyncio.to_thread(server.cache.flush)
    await ask(server, key, temperature=0)
    assert len(upstream.asked) == 1
    line = accounts(server)[NAME]
    assert (line.requests, line.reused, line.unknown_usage) == (4, 3, 0)
    assert line.cost == pytest.approx(COST) and line.saved["cache"].cost == pytest.approx(3 * COST)


async def test_a_client_that_leaves_before_an_answer_leaves_its_cost_unknown(cloud) -> None:
    server, upstream = cloud
    upstream.hold.clear()
    asking = asyncio.create_task(ask(server, key_for(server, limits=Limits(concurrency=1))))
    while not upstream.asked:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    asking.cancel()
    async with asyncio.timeout(5):
        while NAME not in accounts(server):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    upstream.hold.set()
    line = accounts(server)[NAME]
    assert (line.requests, line.unknown_usage) == (1, 1)
    assert server.store.counters.standing(server.store.directory.tenant("acme")).held == {}


async def test_what_is_refused_before_an_upstream_is_asked_costs_nothing(cloud) -> None:
    server, upstream = cloud
    key = key_for(server, limits=Limits(budget=1.0, tpm=100_000))
    with pytest.raises(BadRequestError, match=r"penstock.drafters is for the local engine"):
        await ask(server, key, extra_body={"penstock": {"drafters": []}})
    standing = server.store.counters.standing(server.store.directory.tenant("acme"))
    assert (upstream.asked, accounts(server), standing.spent, standing.held) == ([], {}, 0, {})


async def test_an_upstream_gets_what_a_limited_tenant_was_judged_by(cloud) -> None:
    server, upstream = cloud
    twice = b'{"model": "dear", "messages": [{"role": "user", "content": "hi"}], "model": "embeds"}'
    for limits, times in ((Limits(), 2), (Limits(rpm=1000), 1)):
        headers = {"Authorization": f"Bearer {key_for(server, limits=limits)}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{server.url}/v1/chat/completions", data=twice) as reply,
        ):
            assert reply.status == 200
        assert upstream.bodies[-1].count(b'"model"') == times


async def test_a_budget_needs_prices_and_a_route_is_a_model_of_its_own(cloud) -> None:
    server, _ = cloud
    with pytest.raises(PermissionDeniedError, match="what the model 'free' costs is not known"):
        await ask(server, key_for(server, limits=Limits(budget=1.0)), "free")
    key = key_for(server, models=("quick",))
    await ask(server, key, "quick")
    with pytest.raises(PermissionDeniedError, match="it may use: quick"):
        await ask(server, key, "m")
    key = key_for(server, models=(NAME,))
    await ask(server, key, "m")
    await ask(server, key, "cloud/m")


async def test_embeddings_cost_their_prompts(cloud) -> None:
    server, _ = cloud
    client = server.client(key_for(server, limits=Limits(budget=1.0)))
    await client.embeddings.create(model="embeds", input="some text", encoding_format="float")
    line = accounts(server)["cloud/embeds"]
    assert (line.requests, line.prompt_tokens, line.unknown_usage) == (1, 50, 0)
    assert line.cost == pytest.approx(50 * 4 / 1e6)
