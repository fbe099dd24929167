"""Trusted answers of upstreams: what they answer anyway teaches what is served without them, and background calls check it.

The encoder is random, so that what lies near what is nothing to build on: each topic has a system prompt of its own, and one
question that is kept there, the nearest to all that are asked.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fake_upstream import FakeUpstream, fake_upstream
from running_gateway import CLIENT_KEY, Gateway, Reply, running_gateway, settings_of
from tiny_encoder import write_tiny_encoder

from penstock.config import Settings
from penstock.errors import ConfigError
from penstock.proxy.upstreams.shadows import MAX_AT_ONCE, Shadows
from penstock.scheduler import AsyncEmbedder
from penstock.tables import UpstreamModel

TOPICS = ("France", "Japan", "Brazil", "Kenya", "Norway", "Chile", "Canada", "Egypt")
TOPICS += ("Peru", "Italy", "Spain", "Cuba", "India", "Nepal", "Ghana", "Greece")
STORED = "what is the capital"
# Of the same meaning to the guards.
VARIANTS = (
    "What's the capital?",
    "please, what is the capital?",
    "Hi! What is the capital?",
    "what is the capital, please",
    "What is the capital??",
    "Hello, what's the capital?",
)
CALLS = "penstock_cache_shadow_calls_total"
LABELS = "penstock_cache_near_hits_total"
SPENT = "penstock_upstream_cost_total"
COST = (60 * 2 + 40 * 0.5 + 10 * 8) / 1e6


def system_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"]
    return text


def capital(body: dict[str, Any]) -> str:
    """The same for every way of asking for it, and what is asked for anything else."""
    asked: str = body["messages"][-1]["content"]
    return f"It is {system_of(body)}ville." if "capital" in asked else f"You asked: {asked}"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedder(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncEmbedder]:
    embedder = AsyncEmbedder(
        str(write_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny", hidden_size=256))
    )
    yield embedder
    await embedder.shutdown()


@asynccontextmanager
async def trusting(
    embedder: AsyncEmbedder, folder: Path, **settings: Any
) -> AsyncIterator[tuple[Gateway, FakeUpstream]]:
    """Before one service that goes by two names."""
    async with fake_upstream() as upstream:
        upstream.says = capital
        models = {name: UpstreamModel(input=2.0, cached_input=0.5, output=8.0) for name in ("m", "n")}
        upstreams = {
            "up": settings_of(upstream.url, models=models),
            "other": settings_of(upstream.url.replace("127.0.0.1", "localhost"), models=models),
        }
        given: dict[str, Any] = {"cache_mode": "trusted", "cache_similarity": 0.5}
        given |= {"cache_max_error_rate": 0.2, "cache_path": folder / "completions"} | settings
        async with running_gateway(upstreams, embedder=embedder, **given) as gateway:
            yield gateway, upstream


def body_of(question: str, topic: str = "Peru", **change: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": topic}, {"role": "user", "content": question}]
    return {"model": "up/m", "messages": messages, "temperature": 0} | change


async def ask(
    gateway: Gateway,
    question: str,
    topic: str = "Peru",
    control: str = "no-store",
    key: str = CLIENT_KEY,
    **change: Any,
) -> Reply:
    headers = {"Authorization": f"Bearer {key}"}
    if control:
        headers["x-penstock-cache-control"] = control
    reply = await gateway.post(body_of(question, topic, **change), **headers)
    assert reply.status == 200, reply.body
    return reply


def outcome(reply: Reply) -> str:
    return reply.headers["x-penstock-cache"]


def text_of(reply: Reply) -> str:
    text: str = json.loads(reply.body)["choices"][0]["message"]["content"]
    return text


async def teach(gateway: Gateway, **change: Any) -> list[str]:
    """Keeps an answer in each topic and asks there for the same in all ways; what the cache said of them, in turn."""
    for topic in TOPICS:
        await ask(gateway, STORED, topic, control="", **change)
    assert gateway.cache is not None
    await asyncio.to_thread(gateway.cache.flush)
    return [outcome(await ask(gateway, variant, topic, **change)) for variant in VARIANTS for topic in TOPICS]


async def until_trusted(gateway: Gateway, question: str, **change: Any) -> Reply:
    """What is drawn to be verified is not served; eight times in turn nothing is drawn."""
    for _ in range(8):
        reply = await ask(gateway, question, **change)
        if outcome(reply) == "trusted":
            return reply
    raise AssertionError("it is never trusted")


def figure(gateway: Gateway, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in gateway.http.context.metrics.families()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found)


async def reaches(gateway: Gateway, least: float, name: str, **labels: str) -> None:
    """What is done in the background is done when the figure says so."""
    async with asyncio.timeout(5):
        while figure(gateway, name, **labels) < least:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_what_upstreams_answer_teaches_what_is_served_without_them(
    embedder: AsyncEmbedder, tmp_path: Path
) -> None:
    async with trusting(embedder, tmp_path) as (gateway, upstream):
        outcomes = await teach(gateway)
        assert set(outcomes[:64]) == {"bypass"}, "nothing is served cold"
        assert outcomes[-16:].count("trusted") >= 8
        assert figure(gateway, LABELS, same="yes") >= 64
        assert figure(gateway, LABELS, same="no") == 0

        own = await ask(gateway, VARIANTS[0], control="no-cache, no-store")
        kept, asked = gateway.kept, len(upstream.asked)
        replies = [await ask(gateway, VARIANTS[0]) for _ in range(20)]
        served = [reply for reply in replies if outcome(reply) == "trusted"]
        assert len(served) >= 10 and len(upstream.asked) == asked + 20 - len(served)
        for reply in served:
            assert json.loads(reply.body) == json.loads(own.body), "in the upstream's own form"
            assert 0.5 < float(reply.headers["x-penstock-similarity"]) < 1
            assert {"x-penstock-age", "x-penstock-saved-ms"} <= reply.headers.keys()
            assert reply.headers["x-penstock-model"] == "up/m"
        streamed = await until_trusted(gateway, VARIANTS[0], stream=True)
        assert streamed.events[-1] == b"[DONE]"
        pieces = [json.loads(event)["choices"][0]["delta"].get("content") for event in streamed.events[:-1]]
        assert "".join(piece or "" for piece in pieces) == "It is Peruville."
        assert gateway.kept == kept, "nor kept as the answer to that question"


EARLIER = [
    {"role": "system", "content": "Peru"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": VARIANTS[0]},
]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
OTHERS: list[dict[str, Any]] = [
    {"model": "up/n"},
    {"model": "other/m"},
    {"topic": "peru"},
    {"messages": EARLIER},
    {"tools": [TOOL]},
    {"top_p": 0.5},
    {"max_tokens": 50},
    {"control": "no-store, mode=draft"},
    {"control": "no-store, mode=off"},
    {"control": "no-store, no-cache"},
    {"penstock": {"cache": {"no_store": True, "namespace": "elsewhere"}}},
    {"key": "sk-of-another"},
    {"logprobs": True},
    {"n": 2},
    {"temperature": 1},
    {"question": "what is not the capital"},
    {"question": "what is the capital of Chile"},
    {"question": "what is the capital, in 1940"},
    {"question": "how do I get from Rome to Oslo", "topic": "trips"},
]


async def test_nothing_else_is_served_by_it(embedder: AsyncEmbedder, tmp_path: Path) -> None:
    async with trusting(embedder, tmp_path) as (gateway, upstream):
        await teach(gateway)
        assert outcome(await ask(gateway, "how do I get from Oslo to Rome", "trips", control="")) == "miss"
        assert gateway.kept == len(TOPICS) + 1
        await until_trusted(gateway, VARIANTS[0])
        for change in OTHERS:
            for _ in range(3):
                asked = len(upstream.asked)
                reply = await ask(gateway, **{"question": VARIANTS[0], **change})
                assert outcome(reply) == "bypass" and "x-penstock-similarity" not in reply.headers, change
                assert len(upstream.asked) == asked + 1
        assert text_of(await ask(gateway, "how do I get from Rome to Oslo", "trips")).endswith("Rome to Oslo")
        await until_trusted(gateway, VARIANTS[0])


async def test_what_is_answered_otherwise_is_never_trusted(embedder: AsyncEmbedder, tmp_path: Path) -> None:
    async with trusting(embedder, tmp_path) as (gateway, upstream):
        upstream.says = lambda body: f"{capital(body)} {body['messages'][-1]['content']}"
        assert set(await teach(gateway, stream=True)) == {"bypass"}
        assert figure(gateway, LABELS, same="yes") == 0
        assert figure(gateway, LABELS, same="no") >= 64


async def test_a_client_of_another_api_is_answered_in_it(embedder: AsyncEmbedder, tmp_path: Path) -> None:
    async with trusting(embedder, tmp_path) as (gateway, _):

        async def message(question: str, topic: str, control: str = "no-store") -> Reply:
            turns = [{"role": "user", "content": [{"type": "text", "text": question}]}]
            body = {"model": "up/m", "max_tokens": 99, "temperature": 0, "system": topic, "messages": turns}
            headers = {"x-penstock-cache-control": control} if control else {}
            return await gateway.post(body, "/v1/messages", **headers)

        for topic in TOPICS:
            await message(STORED, topic, control="")
        assert gateway.kept == len(TOPICS)
        replies = [(topic, await message(text, topic)) for text in VARIANTS for topic in TOPICS]
        served = [(topic, json.loads(reply.body)) for topic, reply in replies if outcome(reply) == "trusted"]
        assert len(served) >= 8
        for topic, content in served:
            assert content["type"] == "message"
            assert content["content"] == [{"type": "text", "text": f"It is {topic}ville."}]


async def test_nothing_is_searched_unless_that_is_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    never_asked = AsyncEmbedder(str(tmp_path / "nothing is here"))
    async with trusting(never_asked, tmp_path, cache_mode="draft") as (gateway, _):
        asked = (STORED, *VARIANTS[:2], STORED)
        outcomes = [outcome(await ask(gateway, text, control="")) for text in asked]
        assert outcomes == ["miss", "miss", "miss", "hit"]
        assert figure(gateway, LABELS) == 0
    await never_asked.shutdown()
    assert "exact repeats only" not in caplog.text, "it was not even tried"


async def test_what_is_served_is_checked_in_the_background_within_its_share(
    embedder: AsyncEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trusting(embedder, tmp_path, cache_shadow_share=0.5) as (gateway, upstream):
        await teach(gateway)
        await until_trusted(gateway, VARIANTS[0])
        monkeypatch.setattr(random, "random", lambda: 0.0)  # all that could be served is drawn

        # What is not to be kept is not asked for behind its client's back.
        calls, asked = figure(gateway, CALLS), len(upstream.asked)
        assert outcome(await ask(gateway, VARIANTS[0])) == "bypass"
        assert (figure(gateway, CALLS), len(upstream.asked)) == (calls, asked + 1)

        for stream in (False, True):
            calls, asked, spent = figure(gateway, CALLS), len(upstream.asked), figure(gateway, SPENT)
            labels = figure(gateway, LABELS, reason="explored", same="yes")
            question = f"Hi{'!' * stream} what is the capital?"
            upstream.hold.clear()
            reply = await ask(gateway, question, control="", stream=stream)
            assert outcome(reply) == "trusted", "nobody waits for the upstream"
            upstream.hold.set()
            await reaches(gateway, calls + 1, CALLS, outcome="answered")
            assert len(upstream.asked) == asked + 1
            assert upstream.asked[-1]["messages"][-1]["content"] == question
            await reaches(gateway, labels + 1, LABELS, reason="explored", same="yes")
            assert figure(gateway, SPENT) == pytest.approx(spent + COST)
            assert figure(gateway, "penstock_cache_shadow_cost_total") >= 0.99 * COST
            assert gateway.kept and outcome(await ask(gateway, question, control="")) == "hit", (
                "as after a miss"
            )

        # One that fails teaches nothing, and its client does not notice.
        upstream.status, labels = 500, figure(gateway, LABELS)
        assert outcome(await ask(gateway, "Hi?? what is the capital", control="")) == "trusted"
        await reaches(gateway, 1, CALLS, outcome="failed")
        assert figure(gateway, LABELS) == labels
        upstream.status = 200

        # Then the share is used up: clients wait, and what they get is learnt from all the same.
        outcomes = []
        for place in range(16):
            reply = await ask(gateway, VARIANTS[place % 4] + "!" * place, "Cuba", control="ttl=0.0001")
            outcomes.append(outcome(reply))
        assert outcomes[-6:] == ["miss"] * 6 and outcomes.count("trusted") <= 2 * MAX_AT_ONCE
        labels = figure(gateway, LABELS, reason="explored")
        assert labels > outcomes.count("trusted")


async def test_a_wrong_answer_found_in_the_background_ends_its_trust(
    embedder: AsyncEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trusting(embedder, tmp_path, cache_shadow_share=1.0) as (gateway, upstream):
        await teach(gateway)
        await until_trusted(gateway, VARIANTS[0])
        monkeypatch.setattr(random, "random", lambda: 0.0)
        upstream.says = lambda _body: "It has moved."
        assert text_of(await ask(gateway, VARIANTS[0], control="")) == "It is Peruville."
        await reaches(gateway, 1, LABELS, reason="explored", same="no")
        monkeypatch.undo()
        for _ in range(3):
            assert text_of(await ask(gateway, VARIANTS[0], control="no-store")) == "It has moved."


async def test_few_are_called_at_once_and_a_share_of_what_is_served() -> None:
    shadows, ended, running, most, calls = Shadows(0.25), asyncio.Event(), 0, 0, 0

    async def call() -> None:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await ended.wait()
        running -= 1

    for served in range(1, 101):
        may = shadows.may_call
        shadows.served(checked=may)
        if may:
            shadows.call(call)
            calls += 1
        assert calls <= served / 4
        await asyncio.sleep(0)
    assert calls == MAX_AT_ONCE == most
    ended.set()
    await asyncio.sleep(0.01)
    # Of the 21 that were not made meanwhile few are made up for.
    late = 0
    while shadows.may_call:
        shadows.served(checked=True)
        late += 1
    assert MAX_AT_ONCE <= late <= MAX_AT_ONCE + 1
    ended.clear()
    for _ in range(late):  # several were allowed before the first is made
        shadows.call(call)
    await asyncio.sleep(0)
    assert most == running == MAX_AT_ONCE
    await shadows.close()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="cache_shadow_share is"):
        Settings(cache_shadow_share=share)
