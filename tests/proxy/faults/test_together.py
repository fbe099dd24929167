"""Many ask for the same at the same time."""

import asyncio
import json
from pathlib import Path

import pytest
from faulty_upstream import (
    Exchange,
    FaultyUpstream,
    answered,
    chat_body,
    chat_event,
    chat_events,
    error_body,
    good,
)
from running_gateway import Gateway, chat, running_gateway, settings_of, stalled_request

from penstock.proxy.flight import WINDOW

ROLE, HEL, *REST = chat_events()


class Gate:
    """A behaviour that begins a stream, and goes on when it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.stream_head()
        await exchange.chunk(ROLE)
        await exchange.chunk(HEL)
        await self.open.wait()
        for event in REST:
            await exchange.chunk(event)
        await exchange.last_chunk()


@pytest.mark.fault(
    "10 or 1,000 ask for the same at once",
    "upstream: one request; each client: the whole answer; cache: it, once",
)
@pytest.mark.parametrize("many", [10, 1000])
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
async def test_one_call(gateway: Gateway, upstream: FaultyUpstream, many: int, stream: bool) -> None:
    async def when_all_have_asked(exchange: Exchange) -> None:
        while gateway.http.context.edge.in_flight < many:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await good()(exchange)

    upstream.usual = when_all_have_asked
    replies = await asyncio.gather(*(gateway.post(chat(stream=stream)) for _ in range(many)))
    assert upstream.calls == 1
    assert {(reply.status, reply.cut, reply.body) for reply in replies} == {(200, False, replies[0].body)}
    assert replies[0].body == (b"".join(chat_events()) if stream else chat_body())
    told = [reply.headers["x-penstock-cache"] for reply in replies]
    assert (told.count("miss"), told.count("shared")) == (1, many - 1)
    assert gateway.kept == 1


@pytest.mark.fault("... of the local engine", "engine: one generation; each client: the whole answer")
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
async def test_one_generation(
    upstream: FaultyUpstream, engine_address: str, model: Path, tmp_path: Path, stream: bool
) -> None:
    async with running_gateway(
        {"up": settings_of(upstream.url)}, engine_address=engine_address, model=model, cache_path=tmp_path
    ) as gateway:
        before = gateway.engine.stats.generation_tokens
        asked = chat("tiny", max_tokens=300, ignore_eos=True, stream=stream)
        replies = await asyncio.gather(*(gateway.post(asked) for _ in range(50)))
        assert {reply.status for reply in replies} == {200}

        def text(body: bytes) -> str:
            if not stream:
                said: str = json.loads(body)["choices"][0]["message"]["content"]
                return said
            events = [json.loads(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]
            return "".join(
                choice["delta"].get("content", "") for event in events for choice in event["choices"]
            )

        assert len({text(reply.body) for reply in replies}) == 1
        await asyncio.sleep(0.3)  # for the engine's figures
        assert gateway.engine.stats.generation_tokens - before == 300


@pytest.mark.fault(
    "Of those who share an answer the first one leaves", "the others: the whole answer; upstream: goes on"
)
async def test_the_leader_leaves(gateway: Gateway, upstream: FaultyUpstream) -> None:
    gate = Gate()
    upstream.then(gate)
    leader = await gateway.open(chat(stream=True))
    assert leader.headers["x-penstock-cache"] == "miss"
    others = [asyncio.create_task(gateway.post(chat(stream=True))) for _ in range(5)]
    await leader.content.readuntil(b'"Hel"')
    await asyncio.sleep(0.05)
    leader.close()
    await asyncio.sleep(0.05)
    assert not upstream.exchanges[0].aborted.is_set()
    gate.open.set()
    for reply in await asyncio.gather(*others):
        assert (reply.body, reply.headers["x-penstock-cache"]) == (b"".join(chat_events()), "shared")
    assert (upstream.calls, gateway.kept) == (1, 1)


@pytest.mark.fault(
    "... all of them leave", "upstream: cut off; cache: nothing; who asks next: an answer of his own"
)
async def test_all_leave(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(Gate())
    clients = [await gateway.open(chat(stream=True)) for _ in range(5)]
    for client in clients:
        assert not upstream.exchanges[0].aborted.is_set()
        client.close()
    await asyncio.wait_for(upstream.exchanges[0].aborted.wait(), 2)
    assert gateway.kept == 0
    assert (await gateway.post(chat(stream=True))).headers["x-penstock-cache"] == "miss"
    assert upstream.calls == 2


@pytest.mark.fault("... one joins in mid-stream", "he: all from the beginning")
async def test_joining_late(gateway: Gateway, upstream: FaultyUpstream) -> None:
    gate = Gate()
    upstream.then(gate)
    first = await gateway.open(chat(stream=True))
    await first.content.readuntil(b'"Hel"')
    late = asyncio.create_task(gateway.post(chat(stream=True)))
    await asyncio.sleep(0.05)
    gate.open.set()
    assert (await late).body == b"".join(chat_events())
    assert upstream.calls == 1
    first.close()


@pytest.mark.fault("... the answer breaks off", "each: an error event after what came; cache: nothing")
async def test_it_breaks_for_all(gateway: Gateway, upstream: FaultyUpstream) -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.stream_head()
        await exchange.chunk(ROLE)
        await asyncio.sleep(0.2)
        exchange.cut()

    upstream.then(breaks)
    replies = await asyncio.gather(*(gateway.post(chat(stream=True)) for _ in range(10)))
    for reply in replies:
        assert len(reply.events) == 2 and json.loads(reply.events[-1])["error"]["code"] == "upstream_failed"
    assert (upstream.calls, gateway.kept) == (1, 0)


@pytest.mark.fault(
    "... it fails before the first token", "each: the fallback's answer, which they share again"
)
async def test_it_fails_for_all(gateway: Gateway, upstream: FaultyUpstream, other: FaultyUpstream) -> None:
    async def fails(exchange: Exchange) -> None:
        await asyncio.sleep(0.2)
        await answered(500, error_body("broken"))(exchange)

    upstream.then(fails)
    other.usual = good(delay=0.2)
    replies = await asyncio.gather(*(gateway.post(chat("both", stream=True)) for _ in range(10)))
    assert {(reply.status, reply.headers["x-penstock-model"]) for reply in replies} == {(200, "other/m")}
    assert (upstream.calls, other.calls) == (1, 1)


@pytest.mark.fault(
    "... one of them stops reading",
    "he: cut off after `write_timeout`; the others: wait that long at most, and get the whole answer",
)
async def test_one_is_slow(upstream: FaultyUpstream, tmp_path: Path) -> None:
    async with running_gateway(
        {"up": settings_of(upstream.url)}, cache_path=tmp_path, write_timeout=0.5
    ) as gateway:
        big = [chat_event(content="x" * 65536)] * (8 * WINDOW // 65536)
        sent = b"".join([ROLE, *big, chat_event(finish_reason="stop")])
        gate = asyncio.Event()

        async def behaviour(exchange: Exchange) -> None:
            await gate.wait()
            await exchange.stream_head()
            for event in (ROLE, *big, chat_event(finish_reason="stop")):
                await exchange.chunk(event)
            await exchange.last_chunk()

        upstream.then(behaviour)
        stalled = stalled_request(gateway, chat(stream=True))
        await upstream.asked()
        fast = [asyncio.create_task(gateway.post(chat(stream=True))) for _ in range(2)]
        await asyncio.sleep(0.1)
        gate.set()
        for reply in await asyncio.gather(*fast):
            assert reply.body == sent
        assert upstream.calls == 1
        stalled.close()


@pytest.mark.fault("Those who ask for the same are two tenants", "upstream: one request for each of them")
async def test_tenants_share_nothing(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.usual = good(delay=0.1)
    keys = ["Bearer a", "Bearer b"]
    replies = await asyncio.gather(
        *(gateway.post(chat(stream=True), Authorization=key) for key in keys for _ in range(3))
    )
    assert {reply.status for reply in replies} == {200}
    assert (upstream.calls, gateway.kept) == (2, 2)


@pytest.mark.fault(
    "Answers that differ each time (no seed, temperature not 0) are asked for at once",
    "upstream: one request each",
)
async def test_samples_are_not_shared(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.usual = good(delay=0.1)
    await asyncio.gather(*(gateway.post(chat(temperature=1)) for _ in range(5)))
    assert (upstream.calls, gateway.kept) == (5, 0)
