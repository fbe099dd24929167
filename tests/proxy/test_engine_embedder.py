"""Questions compared by the serving model's own states: real engine, real cache, real sockets, and no embedding model."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
import pytest_asyncio
from openai import NotFoundError
from running_server import RunningServer, running_server
from tiny_encoder import write_tiny_encoder

from penstock.cache import CompletionCache, NearHits
from penstock.config import Settings
from penstock.errors import ConfigError, EngineDeadError
from penstock.proxy.backend import Backend
from penstock.proxy.engine_embedder import UNLIKE, EngineEmbedder
from penstock.scheduler import AsyncEmbedder, AsyncEngine, EngineConfig, EngineProcess, SamplingParams
from penstock.tables import Upstream

CONFIG = EngineConfig(model="builtin", quantize="w8a8", threads=1)
QUESTION, OTHERWISE = "how do I extract a tar.gz archive?", "how can I extract a tar.gz archive?"
PAIRS = [(QUESTION, OTHERWISE), ("show the size of a directory", "how do i show the size of a directory")]
UNDISTURBED = {"x-penstock-cache-control": "no-cache, no-store"}


@pytest.fixture(scope="module")
def builtin_engine() -> Iterator[str]:
    engine = EngineProcess(CONFIG)
    engine.start()
    yield engine.address
    engine.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def near(builtin_engine: str, tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with serving(builtin_engine, tmp_path) as server:
        yield server


def serving(engine: str, folder: Path, **settings: Any) -> Any:
    given = {"embedding_model": "engine", "cache_path": folder / "completions"} | settings
    return running_server(engine, Path("builtin"), **given)


def embedder_of(server: RunningServer) -> EngineEmbedder:
    return EngineEmbedder(server.backend)


async def ask(
    server: RunningServer, question: str, headers: dict[str, str] | None = None
) -> tuple[dict[str, str], str]:
    """The reply's own headers, and its text; what is to be kept is committed by then."""
    messages = [{"role": "user", "content": question}]
    body = {"model": "builtin", "messages": messages, "temperature": 0, "max_tokens": 200}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/chat/completions", json=body, headers=headers or {}) as reply,
    ):
        content = await reply.json()
        assert reply.status == 200, content
    assert server.cache is not None
    await asyncio.to_thread(server.cache.flush)
    own = {name.lower(): value for name, value in reply.headers.items()}
    return own, content["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("first", "second"), PAIRS)
async def test_a_paraphrase_is_a_draft_and_changes_no_letter(
    near: RunningServer, first: str, second: str
) -> None:
    _, undisturbed = await ask(near, second, UNDISTURBED)
    assert (await ask(near, first))[0]["x-penstock-cache"] == "miss"
    headers, text = await ask(near, second)
    assert headers["x-penstock-cache"] == "draft" and text == undisturbed
    assert 0.8 < float(headers["x-penstock-similarity"]) < 1
    headers, text = await ask(near, second)
    assert headers["x-penstock-cache"] == "hit" and text == undisturbed


async def test_what_is_unlike_is_no_draft(near: RunningServer) -> None:
    for question in UNLIKE[:6]:
        assert (await ask(near, question))[0]["x-penstock-cache"] == "miss"


async def test_vectors_are_of_length_1_and_do_not_depend_on_each_other(near: RunningServer) -> None:
    embedder, texts = embedder_of(near), [QUESTION, "", OTHERWISE, "what is rust?"]
    together = await embedder.embed(texts)
    assert together.dtype == np.float32 and together.shape == (4, embedder.dims) == (4, 384)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal((await embedder_of(near).embed([text]))[0], vector)
    assert together[0] @ together[2] > 0.8 > 0.5 > together[0] @ together[3]
    assert (await embedder.embed([])).shape == (0, 384)


async def test_of_a_long_text_the_beginning_counts(near: RunningServer) -> None:
    embedder = embedder_of(near)
    long, longer = await embedder.embed(["water " * 3000, "water " * 3000 + "fire " * 3000])
    assert np.array_equal(long, longer)


async def test_it_shares_the_engine_with_streams(near: RunningServer) -> None:
    _, undisturbed = await ask(near, QUESTION, UNDISTURBED)
    embedder = embedder_of(near)
    alone = await embedder.embed([f"question number {number}" for number in range(40)])
    streaming = asyncio.create_task(ask(near, QUESTION, UNDISTURBED))
    await near.busy()
    beside = await embedder.embed([f"question number {number}" for number in range(40)])
    assert (await streaming)[1] == undisturbed and np.array_equal(alone, beside)
    await near.idle()


async def test_a_restarted_server_finds_what_it_kept(builtin_engine: str, tmp_path: Path) -> None:
    async with serving(builtin_engine, tmp_path) as server:
        fingerprint = embedder_of(server).fingerprint
        await ask(server, QUESTION)
    async with serving(builtin_engine, tmp_path) as server:
        assert embedder_of(server).fingerprint == fingerprint
        assert (await ask(server, OTHERWISE))[0]["x-penstock-cache"] == "draft"


async def test_an_engine_that_dies_is_asked_again() -> None:
    backend = Backend("builtin", AsyncEngine(CONFIG))
    await backend.start()
    try:
        embedder, texts = EngineEmbedder(backend), [f"question number {number}" for number in range(60)]
        before = await embedder.embed(texts)
        asked = asyncio.create_task(embedder.embed(texts))
        await asyncio.sleep(0.005)
        backend.engine._host._process.kill()
        assert np.array_equal(await asked, before)
    finally:
        await backend.close()
    with pytest.raises(EngineDeadError):
        await embedder.embed(texts)


@pytest.mark.parametrize("dims", [384, 256])
async def test_an_index_that_another_embedder_made(
    builtin_engine: str, tmp_path: Path, dims: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of as many numbers: nobody's vectors are compared with the other's. Of fewer: nothing is found by meaning at all."""
    folder = write_tiny_encoder(tmp_path / "encoder", hidden_size=dims)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("64", str(dims)))
    encoder = AsyncEmbedder(str(folder))
    by_encoder = {"embedding_model": str(folder), "embedder": encoder, "cache_similarity": 0.01}
    async with serving(builtin_engine, tmp_path, **by_encoder) as server:
        await ask(server, QUESTION)
        assert (await ask(server, OTHERWISE))[0]["x-penstock-cache"] == "draft"
    await encoder.shutdown()
    async with serving(builtin_engine, tmp_path, cache_similarity=0.01) as server:
        assert (await ask(server, QUESTION))[0]["x-penstock-cache"] == "hit"
        headers, _ = await ask(server, "how to extract a tar.gz archive")
        assert headers["x-penstock-cache"] == "miss"
        again = (await ask(server, "please tell me how to extract a tar.gz archive"))[0]["x-penstock-cache"]
    told = f"holds embeddings of {dims} numbers, and the embedder makes 384"
    assert (again, told in caplog.text) == (("draft", False) if dims == 384 else ("miss", True))


async def test_another_model_or_precision_is_another_embedder(
    near: RunningServer, engine_address: str, model: Path
) -> None:
    async with running_server(engine_address, model) as other:
        assert embedder_of(other).fingerprint != embedder_of(near).fingerprint
    info = near.engine.info
    before = embedder_of(near).fingerprint
    near.engine.info = msgspec.structs.replace(info, fingerprint="of other weights")
    assert embedder_of(near).fingerprint != before
    near.engine.info = info


async def test_states_too_short_for_the_index_are_refused_at_start(
    engine_address: str, model: Path, tmp_path: Path
) -> None:
    settings = {"embedding_model": "engine", "cache_path": tmp_path / "completions"}
    with pytest.raises(
        ConfigError, match=r"states of tiny have 64 numbers, and the cache compares.* at least 256; set"
    ):
        async with running_server(engine_address, model, **settings):
            pass


async def test_a_model_that_hides_its_states_is_refused(near: RunningServer) -> None:
    info = near.engine.info
    near.engine.info = msgspec.structs.replace(info, architecture="OPTForCausalLM", hidden_size=0)
    with pytest.raises(
        ConfigError, match="OPTForCausalLM keeps its hidden states to itself; set embedding_model"
    ):
        embedder_of(near).check()
    near.engine.info = info


async def test_embeddings_are_not_served_by_it(near: RunningServer) -> None:
    with pytest.raises(NotFoundError, match="No embedding model is served"):
        await near.client().embeddings.create(model="builtin", input="x")


def test_where_no_model_runs_it_is_refused() -> None:
    settings = {"model": "none", "upstreams": {"up": Upstream(base_url="http://127.0.0.1:9", models=["m"])}}
    assert Settings(**settings).embedding_model == "auto"
    with pytest.raises(ConfigError, match="embedding_model is 'engine', but model is 'none'"):
        Settings(**settings, embedding_model="engine")


async def test_an_engine_that_is_full_at_start_is_asked_again(tmp_path: Path) -> None:
    """It computes one request, and another one may wait, and does."""
    backend = Backend("builtin", AsyncEngine(msgspec.structs.replace(CONFIG, max_num_seqs=1, max_waiting=1)))
    await backend.start()

    async def fill() -> None:
        params = SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True)
        async for _ in backend.engine.generate([5, 6, 7], params):
            pass

    running = asyncio.create_task(fill())
    try:
        async with asyncio.timeout(20):
            while not backend.engine.stats.num_running:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            waiting = asyncio.create_task(fill())
            while not backend.engine.stats.num_waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            with CompletionCache(tmp_path / "completions") as cache:
                hits = NearHits(cache, EngineEmbedder(backend))
                starting = asyncio.create_task(hits.start())
                await asyncio.sleep(0.2)
                assert not hits.is_ready and not starting.done()
                for task in (running, waiting):
                    task.cancel()
                await starting
                assert hits.is_ready
    finally:
        running.cancel()
        await backend.close()
