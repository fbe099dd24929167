"""An upstream fails again and again, or is sometimes late."""

import asyncio
import time

import pytest
from faulty_upstream import Exchange, FaultyUpstream, answered, error_body, good, silent
from running_gateway import chat, running_gateway, settings_of

from penstock.proxy.upstreams.latency import LEAST
from penstock.tables import Route

BROKEN = answered(500, error_body("out of memory"))


@pytest.mark.fault(
    "An upstream fails `breaker_failures` times in a row",
    "client: 503 with `Retry-After`, or the fallback's answer; upstream: not asked for `breaker_seconds`",
)
async def test_the_breaker_opens(upstream: FaultyUpstream, other: FaultyUpstream) -> None:
    upstreams = {
        "up": settings_of(upstream.url, breaker_failures=3, breaker_seconds=60.0),
        "other": settings_of(other.url),
    }
    async with running_gateway(upstreams, routes={"both": Route(targets=("up/m", "other/m"))}) as gateway:
        upstream.usual = BROKEN
        for _ in range(3):
            assert (await gateway.post(chat())).status == 500
        reply = await gateway.post(chat())
        assert (reply.status, upstream.calls) == (503, 3)
        assert 50 <= int(reply.headers["retry-after"]) <= 60
        # It is not even tried first.
        assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"
        assert upstream.calls == 3


@pytest.mark.fault(
    "... and `breaker_seconds` later many ask for it",
    "upstream: one request as a probe; others: 503 until it has answered, then all go through",
)
async def test_the_breaker_closes_after_a_probe(upstream: FaultyUpstream) -> None:
    settings = settings_of(upstream.url, breaker_failures=2, breaker_seconds=0.3)
    async with running_gateway({"up": settings}) as gateway:
        upstream.then(BROKEN, BROKEN)
        for _ in range(2):
            await gateway.post(chat())
        await asyncio.sleep(0.35)
        gate = asyncio.Event()

        async def gated(exchange: Exchange) -> None:
            await gate.wait()
            await good()(exchange)

        upstream.then(gated)
        probe = asyncio.create_task(gateway.post(chat()))
        await upstream.asked(3)
        assert [(await gateway.post(chat())).status for _ in range(5)] == [503] * 5
        gate.set()
        assert (await probe).status == 200
        replies = await asyncio.gather(*(gateway.post(chat()) for _ in range(5)))
        assert [reply.status for reply in replies] == [200] * 5
        assert upstream.calls == 8


@pytest.mark.fault("... and the probe fails, too", "upstream: left alone as long again")
async def test_the_probe_fails(upstream: FaultyUpstream) -> None:
    settings = settings_of(upstream.url, breaker_failures=1, breaker_seconds=0.3)
    async with running_gateway({"up": settings}) as gateway:
        upstream.usual = BROKEN
        await gateway.post(chat())
        await asyncio.sleep(0.35)
        assert (await gateway.post(chat())).status == 500
        assert (await gateway.post(chat())).status == 503
        assert upstream.calls == 2


@pytest.mark.fault("... and the probe's client leaves", "upstream: the next request is the probe")
async def test_the_probes_client_leaves(upstream: FaultyUpstream) -> None:
    settings = settings_of(upstream.url, breaker_failures=1, breaker_seconds=0.2)
    async with running_gateway({"up": settings}) as gateway:
        upstream.then(BROKEN, silent)
        await gateway.post(chat())
        await asyncio.sleep(0.25)
        leaving = asyncio.create_task(gateway.post(chat()))
        exchange = await upstream.asked(2)
        leaving.cancel()
        await asyncio.wait_for(exchange.aborted.wait(), 2)
        assert (await gateway.post(chat())).status == 200


@pytest.mark.fault("Clients leave, or are refused as 400", "upstream: none of these counts as its failure")
async def test_what_is_not_its_failure(upstream: FaultyUpstream) -> None:
    settings = settings_of(upstream.url, breaker_failures=1, breaker_seconds=60.0)
    async with running_gateway({"up": settings}) as gateway:
        upstream.then(answered(400, error_body("bad")), silent)
        assert (await gateway.post(chat())).status == 400
        leaving = asyncio.create_task(gateway.post(chat()))
        exchange = await upstream.asked(2)
        leaving.cancel()
        await asyncio.wait_for(exchange.aborted.wait(), 2)
        assert (await gateway.post(chat())).status == 200


@pytest.mark.fault(
    "A first token is late, with `hedge_percentile`",
    "upstream: asked a second time, and the slower attempt cut off; client: the faster one's answer",
)
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
async def test_hedging(upstream: FaultyUpstream, stream: bool) -> None:
    async with running_gateway({"up": settings_of(upstream.url, hedge_percentile=0.9)}) as gateway:
        for _ in range(LEAST):
            assert (await gateway.post(chat(stream=stream))).status == 200
        upstream.then(silent)
        started = time.perf_counter()
        reply = await gateway.post(chat(stream=stream))
        assert (reply.status, upstream.calls) == (200, LEAST + 2)
        assert time.perf_counter() - started < 2
        await asyncio.wait_for(upstream.exchanges[LEAST].aborted.wait(), 2)
        assert not upstream.exchanges[LEAST + 1].aborted.is_set()
        assert gateway.live().active == 0


@pytest.mark.fault("... and the second attempt fails", "client: the first one's answer")
async def test_the_hedge_fails(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url, hedge_percentile=0.9)}) as gateway:
        for _ in range(LEAST):
            await gateway.post(chat())
        upstream.then(good(delay=0.5), BROKEN)
        reply = await gateway.post(chat())
        assert (reply.status, upstream.calls) == (200, LEAST + 2)


@pytest.mark.fault("... and the client leaves", "upstream: both attempts cut off")
async def test_leaving_two_attempts(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url, hedge_percentile=0.9)}) as gateway:
        for _ in range(LEAST):
            await gateway.post(chat())
        upstream.then(silent, silent)
        leaving = asyncio.create_task(gateway.post(chat()))
        await upstream.asked(LEAST + 2)
        leaving.cancel()
        for exchange in upstream.exchanges[LEAST:]:
            await asyncio.wait_for(exchange.aborted.wait(), 2)


@pytest.mark.fault("... and all are late", "upstream: about a tenth of the requests is asked twice, no more")
async def test_few_are_hedged(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url, hedge_percentile=0.05)}) as gateway:
        for _ in range(LEAST):
            await gateway.post(chat())
        upstream.usual = good(delay=0.02)
        for _ in range(100):
            await gateway.post(chat())
        assert LEAST + 100 < upstream.calls <= LEAST + 100 + 25


@pytest.mark.fault(
    "The upstream answers one client's requests with 403 again and again", "other clients: their answers"
)
async def test_one_client_does_not_open_the_breaker(upstream: FaultyUpstream) -> None:
    upstream.then(*[answered(403, error_body("not you"))] * 3)
    settings = settings_of(upstream.url, retries=0, breaker_failures=2)
    async with running_gateway({"up": settings}) as gateway:
        assert [(await gateway.post(chat())).status for _ in range(3)] == [502] * 3
        assert (await gateway.post(chat())).status == 200


@pytest.mark.fault(
    "More requests than `max_connections`",
    "client: its answer, in its turn; upstream: not counted as failing",
)
async def test_waiting_for_a_place(upstream: FaultyUpstream) -> None:
    upstream.usual = good(delay=0.4)
    settings = settings_of(upstream.url, max_connections=1, first_token_timeout=0.6, breaker_failures=1)
    async with running_gateway({"up": settings}) as gateway:
        asked = [gateway.post(chat(stream=True, seed=seed)) for seed in range(4)]
        assert [reply.status for reply in await asyncio.gather(*asked)] == [200] * 4


@pytest.mark.fault(
    "A request's own deadline is too short for the upstream", "client: 504; upstream: not counted as failing"
)
async def test_a_short_deadline(upstream: FaultyUpstream) -> None:
    upstream.usual = good(delay=0.3)
    async with running_gateway({"up": settings_of(upstream.url, retries=0, breaker_failures=1)}) as gateway:
        hurried = {"penstock": {"ttft_deadline": 0.05}}
        assert (await gateway.post(chat(stream=True, **hurried))).status == 504
        assert (await gateway.post(chat(penstock={"deadline": 0.05}))).status == 504
        assert (await gateway.post(chat())).status == 200


@pytest.mark.fault(
    "A field that only the local engine honours",
    "client: 400 that names it; with a fallback to the engine, its answer",
)
async def test_a_field_of_the_engine(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url)}) as gateway:
        reply = await gateway.post(chat(penstock={"drafters": []}))
        assert reply.status == 400 and b"penstock.drafters" in reply.body and upstream.calls == 0
