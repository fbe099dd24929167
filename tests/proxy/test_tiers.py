"""Several models served by one server: each under its own name, by an engine of its own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import openai
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server

from penstock.config import Settings
from penstock.errors import ConfigError
from penstock.proxy.backends import Backends
from penstock.proxy.reload import apply
from penstock.proxy.server import HttpServer, address_of, listen, main_backend, tier_backend
from penstock.scheduler import AsyncEngine
from penstock.tables import Route, Tier

QUESTION = [{"role": "user", "content": "how?"}]
HOUR = 3600.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tiered(
    engine_address: str, model: Path, small_model: Path, small_address: str, tmp_path_factory
) -> AsyncIterator[RunningServer]:
    async with running_server(
        engine_address,
        model,
        tiers={"small": Tier(model=str(small_model), hour_price=2 * HOUR)},
        tier_addresses={"small": small_address},
        routes={
            "first": Route(targets=("small", "tiny")),
            "cheap": Route(targets=("tiny", "small"), policy="cheapest"),
        },
        model_aliases={"little": "small", "big": "tiny"},
        local_hour_price=HOUR,
        cache_path=tmp_path_factory.mktemp("tiers") / "completions",
    ) as running:
        yield running


async def answer(server: RunningServer, model: str, **fields: object) -> tuple[str, str, str]:
    """Text, and who says it by name and by fingerprint."""
    given = {"max_tokens": 24, "temperature": 0, "messages": QUESTION, **fields}
    whole = await server.client().chat.completions.create(model=model, **given)
    return whole.choices[0].message.content, whole.model, whole.system_fingerprint


async def fetched(server: RunningServer, path: str, **body: object) -> tuple[int, dict]:
    method = "POST" if body else "GET"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, server.url + path, json=body or None) as reply,
    ):
        return reply.status, await reply.json()


async def metrics(server: RunningServer) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


async def test_each_answers_under_its_own_name(tiered: RunningServer) -> None:
    main, small = await asyncio.gather(answer(tiered, "tiny"), answer(tiered, "small"))
    assert (main[1], small[1]) == ("tiny", "small")
    assert main[0] != small[0]
    assert main[2] != small[2]
    # What is kept of one is no answer of the other.
    assert [await answer(tiered, name) for name in ("tiny", "small")] == [main, small]


async def test_aliases_and_routes_lead_to_tiers(tiered: RunningServer) -> None:
    assert await answer(tiered, "little") == await answer(tiered, "small") == await answer(tiered, "first")
    assert await answer(tiered, "big") == await answer(tiered, "tiny")


async def test_each_is_listed_with_its_own_length(tiered: RunningServer) -> None:
    _, listed = await fetched(tiered, "/v1/models")
    lengths = {card["id"]: card["max_model_len"] for card in listed["data"]}
    assert lengths["tiny"] == 512
    assert lengths["small"] == lengths["little"] == lengths["first"] == 128


async def test_each_has_its_own_limits(tiered: RunningServer) -> None:
    long = [{"role": "user", "content": "x" * 200}]
    assert (await answer(tiered, "tiny", messages=long))[1] == "tiny"
    with pytest.raises(openai.BadRequestError, match="at most 128"):
        await answer(tiered, "small", messages=long)
    assert (await answer(tiered, "first", messages=long))[1] == "tiny"  # which has room for it
    for name, length in (("tiny", 512), ("small", 128)):
        _, counted = await fetched(tiered, "/tokenize", model=name, prompt="abc")
        assert (counted["count"], counted["max_model_len"]) == (3, length)
    assert (await fetched(tiered, "/tokenize", model="medium", prompt="abc"))[0] == 404


async def test_other_apis_reach_them_too(tiered: RunningServer) -> None:
    client = tiered.client()
    completion = await client.completions.create(model="small", prompt="a", max_tokens=2)
    response = await client.responses.create(model="small", input="a", max_output_tokens=16)
    assert (completion.model, response.model) == ("small", "small")
    status, message = await fetched(
        tiered, "/v1/messages", model="small", max_tokens=4, messages=[{"role": "user", "content": "a"}]
    )
    assert (status, message["model"]) == (200, "small")


async def test_each_has_its_own_figures(tiered: RunningServer) -> None:
    before = await metrics(tiered)
    await answer(tiered, "small", max_tokens=9, extra_body={"ignore_eos": True}, temperature=1)
    after = await metrics(tiered)
    name = "penstock_generation_tokens_total"
    assert after[f'{name}{{model="small"}}'] - before[f'{name}{{model="small"}}'] == 9
    assert after[f'{name}{{model="tiny"}}'] == before[f'{name}{{model="tiny"}}']
    assert after['penstock_engine_up{model="small"}'] == after['penstock_engine_up{model="tiny"}'] == 1


async def test_seconds_of_each_have_their_own_price(tiered: RunningServer) -> None:
    """The small one's hour costs twice as much here: with the same speed the main one is the cheaper."""
    await asyncio.gather(answer(tiered, "tiny"), answer(tiered, "small"))
    accounts = {name: local.service.account for name, local in tiered.http.context.locals.items()}
    for name, price in (("tiny", 1.0), ("small", 2.0)):
        seconds = accounts[name].expected_seconds(1000)
        assert seconds > 0
        assert accounts[name].expected_cost(1000) == pytest.approx(seconds * price)
        assert accounts[name].known_cost(1000) == accounts[name].expected_cost(1000)


async def test_the_cheapest_is_the_one_that_spends_least_of_its_engine(tiered: RunningServer) -> None:
    await asyncio.gather(answer(tiered, "tiny"), answer(tiered, "small"))
    accounts = {name: local.service.account for name, local in tiered.http.context.locals.items()}
    for cheap, dear in (("small", "tiny"), ("tiny", "small")):
        accounts[cheap]._seconds_per_token, accounts[dear]._seconds_per_token = 0.001, 0.01
        content = f"which, with {cheap}?"
        assert (await answer(tiered, "cheap", messages=[{"role": "user", "content": content}]))[1] == cheap


async def test_a_changed_tier_needs_a_restart(tiered: RunningServer) -> None:
    context = tiered.http.context

    changed = msgspec.structs.replace(tiered.settings, tiers={"small": Tier(model="builtin")})
    with pytest.raises(ConfigError, match="tiers cannot be changed while serving"):
        apply(context, changed)
    assert context.settings.tiers == tiered.settings.tiers


async def test_two_of_one_name_are_refused(engine_address: str, model: Path) -> None:
    for settings in ({}, {"served_model_name": "large", "model_aliases": {"tiny": "large"}}):
        with pytest.raises(ConfigError, match="Two models served here are called 'tiny'"):
            async with running_server(
                engine_address,
                model,
                tiers={"tiny": Tier(model=str(model))},
                tier_addresses={"tiny": engine_address},
                **settings,
            ):
                pass


async def test_where_a_tier_is_down_the_others_answer(
    tiered: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = {"status": "ready", "model": "tiny"}
    assert await fetched(tiered, "/health/ready") == (200, {**ready, "tiers": {"small": "ready"}})
    monkeypatch.setattr(tiered.http.context.locals["small"].backend.engine, "healthy", False)
    assert await fetched(tiered, "/health/ready") == (200, {**ready, "tiers": {"small": "loading"}})
    assert (await answer(tiered, "first"))[1] == "tiny"
    assert (await metrics(tiered))['penstock_engine_up{model="small"}'] == 0


async def test_all_are_waited_for_at_the_start(engine_address: str, model: Path) -> None:
    settings = Settings(model=str(model), port=0, cache=False, tiers={"small": Tier(model=str(model))})
    main = main_backend(settings, AsyncEngine.connect(engine_address))
    small = tier_backend(settings, "small", AsyncEngine.connect(engine_address))
    sock = listen(settings)
    backends = Backends(main, [small])
    server = HttpServer(settings, backends, None, sock)
    await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            await main.start()
            assert (await session.get(f"{address_of(sock)}/health/ready")).status == 503
            await small.start()
            assert (await session.get(f"{address_of(sock)}/health/ready")).status == 200
    finally:
        await backends.close()
        await server.close()
