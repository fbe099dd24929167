"""Loading, readiness, drain: the server's life around its requests, within one process."""

import asyncio
import time
from pathlib import Path

import aiohttp
import openai
import pytest
from running_server import RunningServer, running_server

from penstock.config import Settings
from penstock.errors import ConfigError, ModelLoadError
from penstock.proxy.backend import Backend
from penstock.proxy.backends import Backends
from penstock.proxy.server import HttpServer, address_of, listen
from penstock.scheduler import AsyncEngine, EngineConfig

LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "go on"}],
    "max_tokens": 300,
    "extra_body": {"ignore_eos": True},
}


async def status_of(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        return reply.status, (await reply.json())["status"]


async def test_requests_wait_while_the_model_loads(engine_address: str, model: Path) -> None:
    settings = Settings(model=str(model), port=0)
    sock = listen(settings)
    backend = Backend(settings.model, AsyncEngine.connect(engine_address))
    server = HttpServer(settings, Backends(backend), None, sock)
    await server.start()
    url = address_of(sock)
    try:
        assert await status_of(url + "/health/ready") == (503, "loading")
        assert await status_of(url + "/health/live") == (200, "live")
        client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="x")
        early = asyncio.create_task(client.completions.create(model="tiny", prompt="a", max_tokens=2))
        await asyncio.sleep(0.1)
        assert not early.done()
        await backend.start()
        assert (await early).usage is not None
        assert await status_of(url + "/health") == (200, "ready")
    finally:
        await backend.close()
        await server.close()


async def test_a_model_that_cannot_load_fails_requests_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    settings = Settings(model=str(tmp_path), port=0)
    sock = listen(settings)
    backend = Backend(settings.model, AsyncEngine(EngineConfig(model=str(tmp_path))))
    server = HttpServer(settings, Backends(backend), None, sock)
    await server.start()
    url = address_of(sock)
    try:
        with pytest.raises(ModelLoadError):
            await backend.start()
        assert await status_of(url + "/health/ready") == (503, "failed")
        async with aiohttp.ClientSession() as session:
            body = {"model": backend.name, "prompt": "a"}
            async with session.post(url + "/v1/completions", json=body) as reply:
                assert reply.status == 503
                assert "could not be loaded" in (await reply.json())["error"]["message"]
    finally:
        await backend.close()
        await server.close()


async def test_a_drain_lets_streams_finish_and_takes_nothing_new(engine_address: str, model: Path) -> None:
    async with running_server(engine_address, model) as server:
        client = server.client()
        stream = await client.chat.completions.create(**LONG, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        draining = asyncio.create_task(server.http.drain(20, asyncio.Event()))
        await asyncio.sleep(0.05)
        with pytest.raises(openai.APIConnectionError):
            await server.client().models.list()
        rest = [chunk async for chunk in chunks]
        assert rest[-1].choices[0].finish_reason == "length"
        await asyncio.wait_for(draining, 2)


async def test_kept_connections_are_told_while_draining(engine_address: str, model: Path) -> None:
    async with running_server(engine_address, model) as server, aiohttp.ClientSession() as session:
        async with session.get(server.url + "/v1/models") as reply:
            assert reply.status == 200
        await server.http.drain(0, asyncio.Event())
        async with session.get(server.url + "/v1/models") as reply:
            assert reply.status == 503
            assert reply.headers["Retry-After"]


@pytest.mark.parametrize("hurried", [False, True])
async def test_what_outlasts_the_drain_ends_with_an_error_event(
    engine_address: str, model: Path, hurried: bool
) -> None:
    async with running_server(engine_address, model) as server:
        stream = await server.client().chat.completions.create(**LONG, n=20, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        hurry = asyncio.Event()
        if hurried:
            asyncio.get_running_loop().call_later(0.1, hurry.set)
        started = time.perf_counter()
        await server.http.drain(30 if hurried else 0.1, hurry)
        assert time.perf_counter() - started < 10
        await server.backend.close()
        with pytest.raises(openai.APIError, match="shut down"):
            async for _ in chunks:
                pass


async def test_a_taken_port_is_named(server: RunningServer) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"port {port} cannot be listened on"):
        listen(Settings(port=port))


async def test_aliases_of_another_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="not served"):
        Backend("builtin", AsyncEngine.connect("nowhere"), aliases={"a": "other"})


async def test_metrics_count_what_happened(server: RunningServer) -> None:
    async def figures() -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(server.url + "/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }

    before = await figures()
    await server.client().completions.create(model="tiny", prompt="metrics", max_tokens=5, n=2)
    running, generated = (
        f'penstock_{name}{{model="tiny"}}' for name in ("num_requests_running", "generation_tokens_total")
    )
    async with asyncio.timeout(60):
        while True:  # the engine's own figures come with its next message
            after = await figures()
            if after[running] == 0 and after[generated] >= before.get(generated, 0) + 10:
                break
            await asyncio.sleep(0.02)

    def risen(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert risen('penstock_http_requests_total{route="/v1/completions",status="200"}') == 1
    assert risen('penstock_cache_requests_total{outcome="bypass"}') == 1
    assert risen('penstock_time_to_first_token_seconds_count{cache="bypass"}') == 1
    assert risen("penstock_request_queue_time_seconds_count") == 2  # n=2
    assert risen('penstock_e2e_request_latency_seconds_count{cache="bypass"}') == 1
    assert after['penstock_engine_up{model="tiny"}'] == after["penstock_cache_up"] == 1
    assert after["penstock_cache_used_bytes"] <= after["penstock_cache_max_bytes"]
