"""A router file that is written anew while requests are answered by the old one."""

from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest
from running_server import running_server
from simple_router import QUALITY, write_router

from penstock.config import SettingsSource
from penstock.errors import ConfigError
from penstock.proxy.reload import apply
from penstock.proxy.routing.learned.router_file import read_router_file
from penstock.proxy.workers import Changes
from penstock.tables import Route, Tier


def write_stricter(file: Path) -> None:
    """One that keeps nothing."""
    found = read_router_file(file)
    strict = tuple(msgspec.structs.replace(ruling, offset=-9.0) for ruling in found.cascade)
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, cascade=strict)))


async def test_what_it_says_counts_from_the_next_reload_on(
    engine_address: str, small_address: str, model: Path, small_model: Path, tmp_path: Path
) -> None:
    file = write_router(tmp_path / "router.json", "small", "tiny")
    route = Route(targets=("small", "tiny"), policy="cascade", router=file, quality=QUALITY)
    async with (
        running_server(
            engine_address,
            model,
            tiers={"small": Tier(model=str(small_model))},
            tier_addresses={"small": small_address},
            routes={"best": route},
        ) as server,
        aiohttp.ClientSession() as session,
    ):
        context = server.http.context

        async def decision() -> str:
            fields = {"model": "best", "prompt": "kept?", "temperature": 0, "max_tokens": 4}
            async with session.post(f"{server.url}/v1/completions", json=fields) as reply:
                return reply.headers["x-penstock-route"].split("; ")[1]

        assert await decision() == "kept"
        before = context.router
        apply(context, context.settings)
        assert context.router is before, "it says what it said"
        write_stricter(file)
        assert await decision() == "kept"
        apply(context, context.settings)
        assert await decision() == "escalated"
        file.write_text("{")
        with pytest.raises(ConfigError, match=r"routes.best: .* is no router file"):
            apply(context, context.settings)
        assert await decision() == "escalated", "the last one that was good"


def test_workers_are_told_of_every_hangup() -> None:
    """Only they read router files."""
    source, hangups = SettingsSource({}, {}), [1]
    settings = source.load()
    news, told = Pipe()
    changes = Changes(settings, source, settings.port, hangups)
    for _ in range(2):
        changes.hand_on([SimpleNamespace(news=news)])  # type: ignore[list-item]
    assert told.recv() == settings
    assert not told.poll(), "once each"
