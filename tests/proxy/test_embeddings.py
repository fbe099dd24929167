"""/v1/embeddings, as the `openai` client and plain HTTP see it."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from openai import AuthenticationError, BadRequestError, NotFoundError, RateLimitError
from running_server import RunningServer, running_server
from tiny_encoder import MAX_TOKENS, write_tiny_encoder

from penstock.cli_serve import embeddings_line
from penstock.config import Settings
from penstock.models import embedding_location
from penstock.proxy.routes.embeddings import MAX_INPUTS
from penstock.proxy.tenants.tenant import Limits, Tenant
from penstock.scheduler import AsyncEmbedder


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedding(
    engine_address: str, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[RunningServer, AsyncEmbedder]]:
    folder = write_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny-encoder")
    embedder = AsyncEmbedder(str(folder))
    async with running_server(
        engine_address, model, embedder=embedder, embedding_model=str(folder)
    ) as server:
        yield server, embedder
    await embedder.shutdown()


@pytest.mark.parametrize("encoding_format", [None, "float", "base64"])
async def test_texts_become_vectors(embedding, encoding_format: str | None) -> None:
    server, embedder = embedding
    texts = ["how do i list files?", "", "how do i list files?", "another"]
    given = {} if encoding_format is None else {"encoding_format": encoding_format}
    reply = await server.client().embeddings.create(model="tiny-encoder", input=texts, **given)
    assert reply.object == "list" and reply.model == "tiny-encoder"
    assert [(item.object, item.index) for item in reply.data] == [("embedding", place) for place in range(4)]
    expected = await embedder.embed(texts)
    for item, vector in zip(reply.data, expected, strict=True):
        # The client decodes base64 by itself only where it asked for it by itself.
        found = item.embedding
        if isinstance(found, str):
            found = np.frombuffer(base64.b64decode(found), "<f4")
        assert np.array_equal(np.asarray(found, np.float32), vector)
    tokens = sum(len(text.token_ids) for text in await embedder.encode(texts))
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == tokens


async def test_one_text_and_its_token_ids_are_the_same(embedding) -> None:
    server, embedder = embedding
    create = server.client().embeddings.create
    (encoded,) = await embedder.encode(["same"])
    inputs = ["same", ["same"], encoded.token_ids, [encoded.token_ids]]
    replies = [await create(model="tiny-encoder", input=given) for given in inputs]
    assert all(len(reply.data) == 1 for reply in replies)
    assert len({tuple(reply.data[0].embedding) for reply in replies}) == 1
    assert {reply.usage.prompt_tokens for reply in replies} == {6}


async def test_what_is_cut_is_said(embedding) -> None:
    server, _ = embedding
    create = server.client().embeddings.with_raw_response.create
    long = "a " * MAX_TOKENS
    raw = await create(model="tiny-encoder", input=["short", long, "short", long + "b"])
    assert raw.headers["x-penstock-truncated"] == "1,3"
    reply = raw.parse()
    assert reply.data[1].embedding == reply.data[3].embedding != reply.data[0].embedding
    assert reply.usage.prompt_tokens == 2 * 7 + 2 * MAX_TOKENS
    ids = await create(model="tiny-encoder", input=[[4] * (MAX_TOKENS + 1), [4] * MAX_TOKENS])
    assert ids.headers["x-penstock-truncated"] == "0"
    assert ids.parse().data[0].embedding == ids.parse().data[1].embedding
    whole = await create(model="tiny-encoder", input="short", dimensions=64, user="somebody")
    assert "x-penstock-truncated" not in whole.headers


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"dimensions": 32}, "dimensions", "dimensions is 32; vectors of tiny-encoder have 64"),
        ({"input": []}, "input", "not empty"),
        ({"input": ["text", 5]}, "input", "not mixed"),
        ({"input": [[]]}, "input", "has 0 tokens"),
        ({"input": [5000]}, "input", "the token 5000"),
        ({"input": ["x"] * (MAX_INPUTS + 1)}, "input", f"at most {MAX_INPUTS}"),
        ({"input": {"text": "x"}}, "input", "input"),
        ({"encoding_format": "int8"}, "encoding_format", "int8"),
        ({"extra_body": {"truncate": True}}, "truncate", "Unknown parameter 'truncate'"),
    ],
)
async def test_what_is_not_honoured_is_refused(embedding, fields, param: str, message: str) -> None:
    server, _ = embedding
    with pytest.raises(BadRequestError, match=message) as refused:
        await server.client().embeddings.create(**{"model": "tiny-encoder", "input": "x", **fields})
    assert refused.value.param == param


async def test_a_length_that_the_model_has_not_is_dropped_where_the_server_drops(
    embedding, engine_address: str, model: Path
) -> None:
    server, embedder = embedding
    chosen = server.settings.embedding_model
    async with running_server(
        engine_address, model, embedder=embedder, embedding_model=chosen, unsupported="drop"
    ) as lenient:
        raw = await lenient.client().embeddings.with_raw_response.create(
            model="tiny-encoder", input="x", dimensions=32
        )
    assert raw.headers["x-penstock-dropped"] == "dimensions"
    assert len(raw.parse().data[0].embedding) == 64


async def test_as_many_inputs_as_one_request_may_have(embedding) -> None:
    server, _ = embedding
    reply = await server.client().embeddings.create(model="tiny-encoder", input=["x"] * MAX_INPUTS)
    assert [item.index for item in reply.data] == list(range(MAX_INPUTS))


async def test_more_tokens_than_one_request_may_have(embedding, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = embedding
    monkeypatch.setattr("penstock.proxy.routes.embeddings.MAX_TOKENS", 10)
    with pytest.raises(BadRequestError, match="input has 12 tokens; at most 10"):
        await server.client().embeddings.create(model="tiny-encoder", input=["1234", "1234"])


async def test_other_models_do_not_exist(embedding) -> None:
    server, _ = embedding
    for name in ("tiny", "text-embedding-3-small"):
        with pytest.raises(
            NotFoundError, match=f"embedding model '{name}' does not exist here; served is: tiny-enc"
        ):
            await server.client().embeddings.create(model=name, input="x")


async def test_any_name_where_any_is_taken(embedding, engine_address: str, model: Path) -> None:
    server, embedder = embedding
    settings = {"embedding_model": server.settings.embedding_model, "model_aliases": {"*": "tiny"}}
    async with running_server(engine_address, model, embedder=embedder, **settings) as other:
        reply = await other.client().embeddings.create(model="text-embedding-3-small", input="x")
        assert reply.model == "tiny-encoder"


async def test_it_is_listed_behind_the_model(embedding) -> None:
    server, _ = embedding
    models = server.client().models
    assert [card.id for card in (await models.list()).data] == ["tiny", "tiny-encoder"]
    assert (await models.retrieve("tiny-encoder")).root == "tiny-encoder"


async def test_a_server_without_one_says_so(server: RunningServer) -> None:
    with pytest.raises(NotFoundError, match=r"No embedding model is served: install penstock\[semantic\]"):
        await server.client().embeddings.create(model="all-MiniLM-L6-v2", input="x")


async def test_a_key_is_wanted_here_too(embedding, engine_address: str, model: Path) -> None:
    server, embedder = embedding
    settings = {"embedding_model": server.settings.embedding_model, "api_keys": ("secret",)}
    body = {"model": "tiny-encoder", "input": "x"}
    async with running_server(engine_address, model, embedder=embedder, **settings) as other:
        with pytest.raises(AuthenticationError):
            await other.client().embeddings.create(**body)
        assert (await other.client("secret").embeddings.create(**body)).data


async def test_texts_count_for_their_tenant(
    embedding, engine_address: str, model: Path, tmp_path: Path
) -> None:
    server, embedder = embedding
    settings = {"embedding_model": server.settings.embedding_model, "tenants_path": tmp_path / "tenants"}
    async with running_server(engine_address, model, embedder=embedder, **settings) as other:
        assert other.store is not None
        other.store.directory.put_tenant(Tenant(name="acme", limits=Limits(budget=1.0, rpm=1)))
        client = other.client(other.store.directory.create_key("acme").text)
        reply = await client.embeddings.create(model="tiny-encoder", input=["some", "texts"])
        with pytest.raises(RateLimitError):
            await client.embeddings.create(model="tiny-encoder", input="x")
        (line,) = other.store.counters.lines("acme")
        assert (line.model, line.account.requests, line.account.cost) == ("tiny-encoder", 1, 0)
        assert line.account.prompt_tokens == reply.usage.prompt_tokens


def test_without_a_model_serve_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_location, "PACKAGE", "not_installed_anywhere")
    asked_for, left_open = embeddings_line(Settings(embedding_model="none")), embeddings_line(Settings())
    assert "the cache finds exact repeats only" in asked_for and "Install" not in asked_for
    assert left_open.startswith(asked_for) and "Install penstock[semantic]" in left_open
