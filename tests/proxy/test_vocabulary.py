"""Token ids never reach a model that means something else by them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server
from simple_router import QUALITY, write_router
from tiny_model import write_tiny_model

from penstock.tables import Route, Tier, Upstream, UpstreamModel

IDS: list[dict[str, Any]] = [
    {"prompt": [104, 105, 63]},
    {"prompt": "hi?", "logit_bias": {"97": 100}},
    {"prompt": "hi?", "stop_token_ids": [97]},
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(
    engine_address: str, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("vocabulary")
    other = write_tiny_model(folder / "other", special=("<|one-more|>",))
    judged: dict[str, Any] = {"policy": "cascade", "quality": QUALITY}
    routers = {
        small: write_router(folder / f"{small}.json", name, "tiny")
        for small, name in (("same", "same"), ("other", "other"), ("cloud", "cloud/m"))
    }
    async with running_server(
        engine_address,
        model,
        # The same engine behind all: what their tokenizers are is what differs.
        tiers={"same": Tier(model=str(model)), "other": Tier(model=str(other))},
        tier_addresses={"same": engine_address, "other": engine_address},
        upstreams={"cloud": Upstream(base_url="http://127.0.0.1:9/v1", models={"m": UpstreamModel()})},
        routes={
            "judged-same": Route(targets=("same", "tiny"), router=routers["same"], **judged),
            "judged-other": Route(targets=("other", "tiny"), router=routers["other"], **judged),
            "judged-cloud": Route(targets=("cloud/m", "tiny"), router=routers["cloud"], **judged),
            "guessed-other": Route(targets=("other", "tiny"), router=routers["other"], policy="predictive"),
            "plain-same": Route(targets=("same", "tiny")),
            "plain-other": Route(targets=("other", "tiny")),
            "plain-cloud": Route(targets=("tiny", "cloud/m")),
        },
    ) as running:
        yield running


async def ask(server: RunningServer, model: str, **fields: Any) -> tuple[int, str | None, Any]:
    body = {"model": model, "max_tokens": 2, "temperature": 0, **fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/completions", json=body) as reply,
    ):
        return reply.status, reply.headers.get("x-penstock-route"), await reply.json()


@pytest.mark.parametrize("fields", IDS)
@pytest.mark.parametrize("route", ["judged-other", "judged-cloud", "guessed-other"])
async def test_of_two_that_may_differ_only_the_large_tier_is_asked(
    server: RunningServer, route: str, fields: dict[str, Any]
) -> None:
    status, told, reply = await ask(server, route, **fields)
    policy = "predictive" if route.startswith("guessed") else "cascade"
    assert (status, told, reply["model"]) == (200, f"{policy}; token_ids", "tiny")


async def test_text_is_judged_and_so_are_ids_that_both_read(server: RunningServer) -> None:
    _, told, reply = await ask(server, "judged-other", prompt="hi?", logit_bias={})
    assert told is not None and told.startswith("cascade; kept") and reply["model"] == "other"
    _, told, reply = await ask(server, "judged-same", **IDS[1])
    assert told is not None and told.startswith("cascade; kept") and reply["model"] == "same"


@pytest.mark.parametrize("fields", IDS)
async def test_a_route_without_a_judge_refuses_what_is_ambiguous(
    server: RunningServer, fields: dict[str, Any]
) -> None:
    status, _, reply = await ask(server, "plain-other", **fields)
    assert (status, reply["error"]["param"]) == (400, next(name for name in reversed(fields)))
    assert "(other, tiny) have different vocabularies" in reply["error"]["message"]
    for route, text in (("plain-same", None), ("plain-cloud", None), ("plain-other", "hi?")):
        given = fields if text is None else {"prompt": text}
        status, _, reply = await ask(server, route, **given)
        assert status == 200, reply
