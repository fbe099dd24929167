"""The upstream is slow."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import pytest
from faulty_upstream import (
    Exchange,
    FaultyUpstream,
    chat_event,
    chat_events,
    good,
    silent,
    streamed,
    streamed_then,
)
from running_gateway import Reply, chat, running_gateway, settings_of

from penstock.tables import Route

ROLE, HEL, *_ = chat_events()
LIMIT = 0.3


@pytest.fixture
def unaccepting() -> Iterator[str]:
    """The URL of a socket whose queue is full: the kernel answers no SYN."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        waiting.append(sock)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    for sock in (*waiting, listener):
        sock.close()


def timed_out(reply: Reply, took: float, says: str) -> None:
    assert reply.status == 504
    error = json.loads(reply.body)["error"]
    assert (
        error["code"] == "upstream_timeout" and says in error["message"] and "0.3 seconds" in error["message"]
    )
    assert LIMIT <= took < LIMIT + 2


@pytest.mark.fault(
    "No connection within `connect_timeout`", "client: 504 then; with a fallback, that one's answer"
)
async def test_connect(unaccepting: str, other: FaultyUpstream) -> None:
    upstreams = {"up": settings_of(unaccepting, connect_timeout=LIMIT), "other": settings_of(other.url)}
    async with running_gateway(upstreams, routes={"both": Route(targets=("up/m", "other/m"))}) as gateway:
        started = time.perf_counter()
        reply = await gateway.post(chat(stream=True))
        timed_out(reply, time.perf_counter() - started, "has not taken a connection")
        assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"


@pytest.mark.fault(
    "No first token within `first_token_timeout`",
    "client: 504 then, or a fallback's answer; upstream: cut off, and not asked again for what it may still compute",
)
@pytest.mark.parametrize(
    "behaviour",
    [silent, streamed_then(Exchange.never), streamed(*[b": working on it\n\n"] * 50, between=0.02)],
    ids=["no head", "no event", "comments only"],
)
async def test_first_token(upstream: FaultyUpstream, other: FaultyUpstream, behaviour) -> None:
    slow = settings_of(upstream.url, first_token_timeout=LIMIT, retries=2)
    upstreams = {"up": slow, "other": settings_of(other.url)}
    async with running_gateway(upstreams, routes={"both": Route(targets=("up/m", "other/m"))}) as gateway:
        upstream.usual = behaviour
        started = time.perf_counter()
        reply = await gateway.post(chat(stream=True))
        timed_out(reply, time.perf_counter() - started, "has not sent a first token")
        assert (await gateway.post(chat("both", stream=True))).headers["x-penstock-model"] == "other/m"
        assert upstream.calls == 2
        for exchange in upstream.exchanges:
            await asyncio.wait_for(exchange.aborted.wait(), 2)


@pytest.mark.fault(
    "Nothing more within `idle_timeout`", "client: an error event then; upstream: cut off; cache: nothing"
)
async def test_idle(upstream: FaultyUpstream, tmp_path) -> None:
    async with running_gateway(
        {"up": settings_of(upstream.url, idle_timeout=LIMIT)}, cache_path=tmp_path
    ) as gateway:
        upstream.then(streamed_then(Exchange.never, ROLE, HEL))
        started = time.perf_counter()
        reply = await gateway.post(chat(stream=True))
        assert LIMIT <= time.perf_counter() - started < LIMIT + 2
        error = json.loads(reply.events[-1])["error"]
        assert (len(reply.events), error["code"], reply.cut) == (3, "upstream_timeout", False)
        assert "sent nothing for 0.3 seconds" in error["message"]
        await asyncio.wait_for(upstream.exchanges[0].aborted.wait(), 2)
        assert gateway.kept == 0


@pytest.mark.fault("... but comments keep coming", "client: waits on, for the whole answer")
async def test_comments_are_signs_of_life(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url, idle_timeout=0.5)}) as gateway:
        upstream.then(streamed(ROLE, *[b": ping\n\n"] * 10, *chat_events()[1:], between=0.1))
        reply = await gateway.post(chat(stream=True))
        assert reply.events[-1] == b"[DONE]"


@pytest.mark.fault(
    "A stream is not over within `total_timeout`",
    "client: an error event then; upstream: cut off; cache: nothing",
)
async def test_total_of_a_stream(upstream: FaultyUpstream, tmp_path) -> None:
    async with running_gateway(
        {"up": settings_of(upstream.url, total_timeout=LIMIT)}, cache_path=tmp_path
    ) as gateway:
        upstream.then(streamed(ROLE, *[chat_event(content="x")] * 1000, between=0.02))
        started = time.perf_counter()
        reply = await gateway.post(chat(stream=True))
        assert LIMIT <= time.perf_counter() - started < LIMIT + 2
        error = json.loads(reply.events[-1])["error"]
        assert error["code"] == "upstream_timeout" and "within 0.3 seconds" in error["message"]
        assert len(reply.events) > 3
        await asyncio.wait_for(upstream.exchanges[0].aborted.wait(), 2)
        assert gateway.kept == 0


@pytest.mark.fault("A body is not there within `total_timeout`", "client: 504 then; upstream: cut off")
@pytest.mark.parametrize("begun", [False, True], ids=["nothing", "half of it"])
async def test_total_of_a_body(upstream: FaultyUpstream, begun: bool) -> None:
    async def half(exchange: Exchange) -> None:
        await exchange.head(200, "Content-Type: application/json", "Content-Length: 100")
        await exchange.send(b'{"id":')
        await exchange.never()

    async with running_gateway({"up": settings_of(upstream.url, total_timeout=LIMIT)}) as gateway:
        upstream.then(half if begun else silent)
        started = time.perf_counter()
        reply = await gateway.post(chat())
        timed_out(reply, time.perf_counter() - started, "has not answered")
        await asyncio.wait_for(upstream.exchanges[0].aborted.wait(), 2)


@pytest.mark.fault(
    "`max_connections` are in use",
    "client: waits its turn, `total_timeout` at most; upstream: never more at once",
)
async def test_no_more_connections(upstream: FaultyUpstream) -> None:
    busiest = running = 0

    async def counted(exchange: Exchange) -> None:
        nonlocal busiest, running
        running += 1
        busiest = max(busiest, running)
        await good(delay=0.05)(exchange)
        running -= 1

    upstream.usual = counted
    async with running_gateway({"up": settings_of(upstream.url, max_connections=2)}) as gateway:
        replies = await asyncio.gather(*(gateway.post(chat(temperature=1)) for _ in range(8)))
        assert {reply.status for reply in replies} == {200}
        assert (busiest, upstream.calls) == (2, 8)
