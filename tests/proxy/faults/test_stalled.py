"""The client is slow, and much arrives."""

import asyncio
import gc
import json
import time
from hashlib import blake2b
from pathlib import Path

import psutil
import pytest
from faulty_upstream import Exchange, FaultyUpstream, chat_event, chat_events
from running_gateway import chat, running_gateway, settings_of, stalled_request

ROLE, *_ = chat_events()
PIECE = chat_event(content="x" * 65000)
MUCH = 200 << 20
MEMORY_MARGIN = 48 << 20  # socket buffers of three parties in this process, and what malloc holds


def memory() -> int:
    gc.collect()
    rss: int = psutil.Process().memory_info().rss
    return rss


async def much(exchange: Exchange) -> None:
    await exchange.stream_head()
    await exchange.chunk(ROLE)
    for _ in range(MUCH // len(PIECE)):
        await exchange.chunk(PIECE)
    await exchange.chunk(chat_event(finish_reason="stop"))
    await exchange.last_chunk()


@pytest.mark.fault(
    "The client stops reading while 200 MB arrive",
    "memory: flat, the upstream is held back; client: cut off after `write_timeout`; upstream: then cut off; cache: nothing",
)
@pytest.mark.parametrize("temperature", [0, 1], ids=["shared", "alone"])
async def test_a_stalled_client(upstream: FaultyUpstream, tmp_path: Path, temperature: int) -> None:
    upstream.then(much)
    async with running_gateway(
        {"up": settings_of(upstream.url)}, cache_path=tmp_path, write_timeout=1.0
    ) as gateway:
        before = memory()
        started = time.perf_counter()
        stalled = stalled_request(gateway, chat(stream=True, temperature=temperature))
        exchange = await upstream.asked()
        while not exchange.aborted.is_set():
            assert memory() - before < MEMORY_MARGIN
            assert time.perf_counter() - started < 8
            await asyncio.sleep(0.02)
        assert time.perf_counter() - started >= 1
        assert exchange.sent < MUCH / 4
        assert gateway.kept == 0
        stalled.close()


@pytest.mark.fault(
    "200 MB arrive, and the client reads them", "client: every byte; memory: flat; cache: nothing of so much"
)
async def test_much(upstream: FaultyUpstream, tmp_path: Path) -> None:
    upstream.then(much)
    whole = blake2b(ROLE)
    for _ in range(MUCH // len(PIECE)):
        whole.update(PIECE)
    whole.update(chat_event(finish_reason="stop"))
    async with running_gateway({"up": settings_of(upstream.url)}, cache_path=tmp_path) as gateway:
        before, got = memory(), blake2b()
        async with gateway.open(chat(stream=True)) as reply:
            async for data in reply.content.iter_any():
                got.update(data)
                assert psutil.Process().memory_info().rss - before < MEMORY_MARGIN
        assert got.digest() == whole.digest()
        assert gateway.kept == 0


async def large(exchange: Exchange) -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "x" * (20 << 20)},
        "finish_reason": "stop",
    }
    await exchange.reply(200, json.dumps({"choices": [choice]}).encode())


@pytest.mark.fault(
    "The client does not read an answer of 20 MB that is no stream", "client: cut off after `write_timeout`"
)
async def test_a_stalled_client_of_a_body(upstream: FaultyUpstream) -> None:
    upstream.then(large)
    async with running_gateway({"up": settings_of(upstream.url)}, write_timeout=1.0) as gateway:
        stalled = stalled_request(gateway, chat())
        await upstream.asked()
        started = time.perf_counter()
        while connections_to(gateway.url):
            assert time.perf_counter() - started < 8
            await asyncio.sleep(0.05)
        assert time.perf_counter() - started > 0.9
        stalled.close()


def connections_to(url: str) -> int:
    """Those that the server's side has open."""
    port = int(url.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)
