"""LoRA adapters over HTTP: each is a model of its own, in one engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server
from tiny_adapter import write_adapter

from penstock.errors import ConfigError
from penstock.proxy.backend import Backend
from penstock.scheduler import AsyncEngine, EngineConfig, EngineProcess

MESSAGES = [{"role": "user", "content": "how?"}]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def adapted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = {
        name: str(write_adapter(folder / name, model, seed=seed)) for seed, name in enumerate(["sql", "chat"])
    }
    engine = EngineProcess(EngineConfig(model=str(model), threads=1, adapters=adapters))
    engine.start()
    try:
        async with running_server(
            engine.address,
            model,
            adapters=adapters,
            model_aliases={"gpt-4o": "tiny:sql"},
            cache_path=folder / "completions",
        ) as running:
            yield running
    finally:
        engine.stop()


async def answer(server: RunningServer, model: str, **settings: object) -> tuple[str, str, str]:
    """Text, and who says it by name and by fingerprint."""
    whole = await server.client().chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=24, temperature=0, **settings
    )
    return whole.choices[0].message.content, whole.model, whole.system_fingerprint


async def test_each_is_listed_as_a_model(adapted: RunningServer):
    listed = [card async for card in adapted.client().models.list()]
    assert [card.id for card in listed] == ["tiny", "tiny:sql", "tiny:chat", "gpt-4o"]
    card = await adapted.client().models.retrieve("gpt-4o")
    assert card.root == "tiny:sql"


async def test_each_gives_answers_of_its_own(adapted: RunningServer):
    names = ["tiny", "tiny:sql", "tiny:chat"]
    together = await asyncio.gather(*(answer(adapted, name) for name in names))
    assert len({text for text, _, _ in together}) == 3
    assert [model for _, model, _ in together] == names
    assert len({fingerprint for _, _, fingerprint in together}) == 3
    assert await answer(adapted, "gpt-4o") == together[1]


async def test_the_cache_keeps_them_apart(adapted: RunningServer):
    client = adapted.client()

    async def outcome(name: str) -> str | None:
        raw = await client.chat.completions.with_raw_response.create(
            model=name,
            messages=[{"role": "user", "content": "apart?"}],
            seed=1,
            stop=["e"],  # what ends by itself is kept
            logit_bias=adapted.spelling("abcde"),
        )
        return raw.headers.get("x-penstock-cache")

    names = ["tiny", "tiny:sql", "tiny:chat"]
    assert [await outcome(name) for name in names] == ["miss"] * 3
    await asyncio.sleep(0.5)  # what is kept is written behind the answer
    assert [await outcome(name) for name in [*names, "gpt-4o"]] == ["hit"] * 4


async def test_streams_and_plain_completions_say_who_answers(adapted: RunningServer):
    client = adapted.client()
    stream = await client.chat.completions.create(
        model="tiny:chat", messages=MESSAGES, max_tokens=3, temperature=0, stream=True
    )
    assert {chunk.model async for chunk in stream} == {"tiny:chat"}
    whole = await client.completions.create(model="tiny:sql", prompt="how", max_tokens=3, temperature=0)
    assert whole.model == "tiny:sql"


async def test_an_unknown_one_is_not_found(adapted: RunningServer):
    with pytest.raises(
        openai.NotFoundError, match="'tiny:csv' does not exist here; served are: tiny, tiny:sql"
    ):
        await answer(adapted, "tiny:csv")


async def test_an_alias_of_an_unknown_one_is_refused():
    engine = AsyncEngine.connect("/nowhere")
    with pytest.raises(ConfigError, match="'a' to 'm:csv', which is not served"):
        Backend("m", engine, adapters=["sql"], aliases={"a": "m:csv"})
