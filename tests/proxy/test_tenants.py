"""No path leads from one tenant to another: exact hits, near hits, drafts, prefixes, namespaces, and what a file tells."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server

from penstock.models.embedding_location import find_embedding_model
from penstock.scheduler import AsyncEmbedder

CHAT = "/v1/chat/completions"
KEYS = ("key-of-acme", "key-of-bolt")
QUESTION = "please spell a few letters for me, as many as you like, and then stop there"


@pytest_asyncio.fixture(loop_scope="session")
async def server(engine_address: str, model: Path, tmp_path: Path) -> AsyncIterator[RunningServer]:
    embedder = None if (found := find_embedding_model()) is None else AsyncEmbedder(str(found))
    settings = {"cache_path": tmp_path / "completions", "api_keys": KEYS, "speculation": "on"}
    async with running_server(engine_address, model, embedder=embedder, **settings) as running:
        yield running
    if embedder is not None:
        await embedder.shutdown()


async def ask(
    server: RunningServer, key: str, question: str = QUESTION, **headers: str
) -> tuple[str, dict[str, Any]]:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": question}],
        "seed": 1,
        "temperature": 2.0,
        "stop": ["e"],
        "logit_bias": server.spelling("abcde"),
    }
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        session.post(server.url + CHAT, json=body, headers=headers) as reply,
    ):
        content = await reply.json()
        assert reply.status == 200, content
        return reply.headers["x-penstock-cache"], content


def cached_tokens(content: dict[str, Any]) -> int:
    return int(content["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_what_one_tenant_was_told_is_news_to_another(server: RunningServer) -> None:
    acme, bolt = KEYS
    assert (await ask(server, acme))[0] == "miss"
    assert server.cache is not None
    await asyncio.to_thread(server.cache.flush)
    outcome, content = await ask(server, acme, QUESTION + ".")
    if find_embedding_model() is not None:
        assert outcome == "draft"
    assert cached_tokens(content) > 0, "its own prefix is there"
    for question in (QUESTION, QUESTION + ".", QUESTION + "!"):
        outcome, content = await ask(server, bolt, question, x_penstock_cache_control="no-store")
        assert outcome == "miss"


async def test_prefixes_are_salted_by_tenant(server: RunningServer) -> None:
    acme, bolt = KEYS
    long = "a prefix that fills more than a block of tokens, " * 6
    await ask(server, acme, long)
    _, own = await ask(server, acme, long + "one more")
    _, foreign = await ask(server, bolt, long + "one more")
    assert cached_tokens(own) > 0 and cached_tokens(foreign) == 0


@pytest.mark.parametrize("namespace", ["x", "key-of-acme", "default"])
async def test_no_namespace_reaches_another_tenant(server: RunningServer, namespace: str) -> None:
    acme, bolt = KEYS
    await ask(server, acme)
    await ask(server, acme, x_penstock_namespace=namespace)
    assert server.cache is not None
    await asyncio.to_thread(server.cache.flush)
    assert (await ask(server, bolt, x_penstock_namespace=namespace))[0] == "miss"
    assert (await ask(server, acme, x_penstock_namespace=namespace))[0] == "hit"


async def test_entries_of_a_tenant_are_one_range_of_keys(server: RunningServer) -> None:
    for key in KEYS:
        for number in range(3):
            await ask(server, key, f"{QUESTION} {number}")
    cache = server.cache
    assert cache is not None
    await asyncio.to_thread(cache.flush)
    with cache._env.reading() as txn, txn.cursor(cache._env.records) as cursor:
        prefixes = [bytes(place)[:16] for place in cursor.iternext(values=False)]
    assert len(set(prefixes)) == 2 and prefixes == sorted(prefixes)
    assert all(key.encode() not in (cache._env.path / "data.mdb").read_bytes() for key in KEYS)
