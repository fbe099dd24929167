"""Who may see the dashboard, what it is told, and that nobody looks when nobody watches."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from running_admin import running_admin
from running_server import RunningServer, running_server

from penstock.proxy.dashboard.live import Live
from penstock.proxy.dashboard.lookout import Lookout
from penstock.proxy.tenants.admin import ADMIN_KEY
from penstock.proxy.tenants.tenant import Tenant

PAGE, EVENTS = "/dashboard", "/dashboard/events"
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def opened(
    engine_address: str, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("dashboard")
    async with running_server(
        engine_address, model, cache_path=folder / "cache", tenants_path=folder / "tenants"
    ) as server:
        yield server


async def status(url: str, path: str, method: str = "GET", body: Any = None, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url + path, json=body, headers=named) as reply,
    ):
        return reply.status


async def watched(url: str, looks: int, **headers: str) -> list[tuple[str, Any]]:
    """Events until there were so many looks."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    events: list[tuple[str, Any]] = []
    async with (
        aiohttp.ClientSession() as session,
        session.get(url + EVENTS, headers=named) as reply,
    ):
        assert reply.status == 200 and reply.content_type == "text/event-stream"
        while sum(name == "look" for name, _ in events) < looks:
            name = (await reply.content.readline()).decode().removeprefix("event: ").strip()
            data = json.loads((await reply.content.readline()).decode().removeprefix("data: "))
            events.append((name, data))
            assert await reply.content.readline() == b"\n"
    return events


async def test_the_page_lets_nothing_else_in(opened: RunningServer) -> None:
    async with aiohttp.ClientSession() as session, session.get(opened.url + PAGE) as reply:
        text, policy = await reply.text(), reply.headers["Content-Security-Policy"]
        assert reply.status == 200 and reply.content_type == "text/html"
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert policy.count("'sha256-") == 2
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\son\w+=", text)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.com"},
        {"X_Forwarded_For": "10.0.0.1"},
        {"Via": "1.1 somebody"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
async def test_figures_are_for_this_machine(opened: RunningServer, headers: dict[str, str]) -> None:
    assert await status(opened.url, EVENTS, **headers) == 404
    assert await status(opened.url, "/dashboard/requests/x", **headers) == 404


async def test_where_there_are_keys_it_is_only_on_the_admin_listener(
    engine_address: str, model: Path, tmp_path: Path
) -> None:
    async with running_server(
        engine_address, model, api_keys=("right",), tenants_path=tmp_path / "tenants"
    ) as server:
        for path in (PAGE, EVENTS, "/dashboard/requests/x"):
            assert await status(server.url, path) == 401
            assert await status(server.url, path, Authorization="Bearer right") == 404
        async with running_admin(server, None) as url:
            assert await status(url, PAGE) == 200
            assert await status(url, EVENTS, Host="example.com") == 401
            assert await status(url, EVENTS, Origin="http://example.com") == 401
            assert await status(url, EVENTS, Origin=url) == 401, (
                "a page needs no origin to ask where it is from"
            )
            asking = ("/v1/chat/completions", "POST", ASK)
            assert await status(url, *asking) == 401, "a chat takes a tenant's key"
            assert await status(url, *asking, Authorization="Bearer right", Origin=url) == 200
            assert await status(url, *asking, Authorization="Bearer right", Origin="http://else") == 401


async def test_the_admin_key_opens_it(opened: RunningServer) -> None:
    async with running_admin(opened, "letmein") as url:
        assert await status(url, PAGE) == 200
        assert [await status(url, path) for path in (EVENTS, "/dashboard/requests/x", "/tenants")] == [
            401
        ] * 3
        asking = ("/v1/chat/completions", "POST", ASK)
        assert await status(url, *asking) == 401
        assert await status(url, *asking, Authorization="Bearer letmein") == 401
        assert await status(url, *asking, **{ADMIN_KEY: "wrong"}) == 401
        assert await status(url, *asking, **{ADMIN_KEY: "letmein"}) == 200
        assert await status(url, EVENTS, **{ADMIN_KEY: "wrong"}) == 401
        assert (await watched(url, 1, **{ADMIN_KEY: "letmein"}))[0][1]["for_operator"]
        assert await status(url, "/tenants", **{ADMIN_KEY: "letmein"}) == 200


async def test_what_is_seen(opened: RunningServer) -> None:
    watching = asyncio.create_task(watched(opened.url, 3))
    client = opened.client()
    while not watching.done():
        await client.chat.completions.create(**ASK)
    (first, hello), (second, past), *looks = await watching
    assert (first, second, past) == ("hello", "past", [])
    assert hello["models"] == ["tiny"] and not hello["needs_key"] and not hello["for_operator"]
    _, look = looks[-1]
    point = look["point"]
    assert point["requests"] > 1 and point["tokens_out"] > 4 and point["outcomes"]["bypass"] > 1
    assert 0 < point["first_p50"] <= point["first_p99"]
    (engine,) = look["engines"]
    assert engine["up"] == 1 and engine["generated"] > 8 and engine["kv_blocks"] > 0
    assert look["cache"]["outcomes"]["bypass"] >= 3 and look["routes"][0]["count"] >= 3
    assert "tenants" not in look["savings"] and look["savings"]["levers"]


async def test_only_the_operator_is_told_of_tenants(engine_address: str, model: Path, tmp_path: Path) -> None:
    async with running_server(engine_address, model, tenants_path=tmp_path / "tenants") as server:
        server.store.directory.put_tenant(Tenant(name="acme"))
        key = server.store.directory.create_key("acme").text
        await server.client(key).chat.completions.create(**ASK)
        await asyncio.sleep(0.4)
        async with running_admin(server, None) as url:
            _, look = (await watched(url, 1))[-1]
    (acme,) = look["savings"]["tenants"]
    assert (acme["name"], acme["requests"], acme["completion_tokens"]) == ("acme", 1, 4)


async def test_what_became_of_a_request(opened: RunningServer) -> None:
    headers = {"x-request-id": "page-1"}
    async with aiohttp.ClientSession() as session:
        async with session.post(opened.url + "/v1/chat/completions", json=ASK, headers=headers) as reply:
            await reply.read()
        async with session.get(opened.url + "/dashboard/requests/page-1") as reply:
            told = await reply.json()
        async with session.get(opened.url + "/dashboard/requests/page-2") as reply:
            assert reply.status == 404
    assert (told["cache"], told["model"], told["completion_tokens"], told["cost"]) == (
        "bypass",
        "tiny",
        4,
        0.0,
    )
    assert "prompt" not in told and "tenant" not in told


async def test_all_share_one_look_and_none_is_made_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.proxy.dashboard.live.INTERVAL_SECONDS", 0.02)
    made, over = 0, False

    async def look() -> dict[str, Any]:
        nonlocal made
        made += 1
        return {"point": made}

    live = Live(look, lambda: over)
    one, other = live.events(), live.events()
    assert await anext(one) == b"event: past\ndata: []\n\n"
    await anext(other)
    assert await asyncio.gather(anext(one), anext(other)) == [b'event: look\ndata: {"point":1}\n\n'] * 2
    await anext(one)
    late = live.events()
    assert await anext(late) == b"event: past\ndata: [1]\n\n"
    assert await anext(late) == b'event: look\ndata: {"point":2}\n\n'
    await asyncio.gather(one.aclose(), other.aclose(), late.aclose())
    await asyncio.sleep(0.06)
    before = made
    await asyncio.sleep(0.06)
    assert made == before
    # Somebody comes again; then the server ends, and so does the stream.
    again = live.events()
    assert await anext(again) == b"event: past\ndata: []\n\n"
    await anext(again)
    over = True
    assert [event async for event in again] == []


async def test_a_key_that_is_made_ends_what_was_open(
    engine_address: str, model: Path, tmp_path: Path
) -> None:
    async with (
        running_server(engine_address, model, tenants_path=tmp_path / "tenants") as server,
        aiohttp.ClientSession() as session,
        session.get(server.url + EVENTS) as reply,
        asyncio.timeout(10),
    ):
        assert server.store is not None
        server.store.directory.put_tenant(Tenant(name="acme"))
        server.store.directory.create_key("acme")
        await reply.content.read()
        assert await status(server.url, EVENTS) == 401


async def test_who_watches_does_not_keep_the_server_from_ending(engine_address: str, model: Path) -> None:
    async with (
        running_server(engine_address, model) as server,
        aiohttp.ClientSession() as session,
        session.get(server.url + EVENTS) as reply,
        asyncio.timeout(10),
    ):
        await reply.content.readline()
        await server.http.drain(30, asyncio.Event())
        assert (await reply.content.read()).endswith(b"\n\n")


TWO_TIERS = """# TYPE penstock_engine_up gauge
penstock_engine_up{model="large"} 1
penstock_engine_up{model="small"} 0
# TYPE penstock_num_requests_running gauge
penstock_num_requests_running{model="large"} 3
# TYPE penstock_kv_cache_usage_perc gauge
penstock_kv_cache_usage_perc{model="large"} 0.5
# TYPE penstock_draft_tokens counter
penstock_draft_tokens_total{drafter="ngram",model="large"} 6
penstock_draft_tokens_total{drafter="ngram",model="small"} 4
# TYPE penstock_draft_accepted_tokens counter
penstock_draft_accepted_tokens_total{drafter="ngram",model="large"} 5
# TYPE penstock_cascade counter
penstock_cascade_total{route="chat",decision="kept"} 8
penstock_cascade_total{route="chat",decision="escalated"} 2
# TYPE penstock_shadow counter
penstock_shadow_total{route="chat",outcome="same"} 4
# TYPE penstock_cache_near_hits counter
penstock_cache_near_hits_total{reason="draft",same="yes"} 3
penstock_cache_near_hits_total{reason="draft",same="no"} 1
"""


async def test_tiers_and_learned_routes_are_seen() -> None:
    lookout = Lookout(lambda: text_string_to_metric_families(TWO_TIERS), list, None, shows_tenants=False)
    look = await lookout.look()
    large, small = look["engines"]
    assert (large["model"], large["up"], large["running"], large["kv_usage"]) == ("large", 1, 3, 0.5)
    assert (small["model"], small["up"]) == ("small", 0) and "running" not in small
    assert look["point"]["running"] == 3 and look["point"]["kv_usage"] == 0.5
    assert look["drafters"] == [{"drafter": "ngram", "drafted": 10.0, "accepted": 5.0}]
    assert [(row["decision"], row["count"]) for row in look["decisions"]] == [("kept", 8), ("escalated", 2)]
    assert look["comparisons"] == [{"route": "chat", "outcome": "same", "count": 4}]
    assert (look["cache"]["verified"], look["cache"]["verified_same"]) == (4, 3)
    assert look["savings"] is None and look["upstreams"] == [] and look["cache"]["entries"] is None
