"""The client leaves.

Whatever is computed for nobody is stopped: each time the upstream sees its connection closed at once.
"""

import asyncio
import json
from collections.abc import Iterator

import pytest
from faulty_upstream import FaultyUpstream, chat_event, silent, streamed_then
from running_gateway import CHAT_PATH, Gateway, chat

PROMPTLY = 2.0  # on a busy machine; else milliseconds

begun = streamed_then(
    lambda exchange: exchange.never(), chat_event(role="assistant"), chat_event(content="Hel")
)


@pytest.fixture(params=["RST", "FIN"])
def leave(request: pytest.FixtureRequest) -> Iterator[object]:
    def leave(writer: asyncio.StreamWriter) -> None:
        if request.param == "RST":
            writer.transport.abort()
        else:
            writer.close()

    yield leave


@pytest.fixture(params=["alone", "shared"])
def kind(request: pytest.FixtureRequest) -> dict[str, object]:
    """Of requests: never shared with others, or ready to be."""
    return {"temperature": 1 if request.param == "alone" else 0}


async def connect(
    gateway: Gateway, fields: dict[str, object]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(fields).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT_PATH.encode(), len(body)) + body
    )
    return reader, writer


async def assert_idle(gateway: Gateway) -> None:
    async with asyncio.timeout(PROMPTLY):
        while gateway.live().active or gateway.http.context.edge.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.fault("The client leaves before the first token", "upstream: cut off at once; cache: nothing")
async def test_before_the_first_token(gateway: Gateway, upstream: FaultyUpstream, leave, kind) -> None:
    upstream.then(silent)
    _, writer = await connect(gateway, chat(stream=True, **kind))
    exchange = await upstream.asked()
    leave(writer)
    await asyncio.wait_for(exchange.aborted.wait(), PROMPTLY)
    await assert_idle(gateway)
    assert (gateway.kept, upstream.calls) == (0, 1)


@pytest.mark.fault("The client leaves in mid-stream", "upstream: cut off at once; cache: nothing")
async def test_mid_stream(gateway: Gateway, upstream: FaultyUpstream, leave, kind) -> None:
    upstream.then(begun)
    reader, writer = await connect(gateway, chat(stream=True, **kind))
    await reader.readuntil(b'"Hel"')
    exchange = await upstream.asked()
    assert not exchange.aborted.is_set()
    leave(writer)
    await asyncio.wait_for(exchange.aborted.wait(), PROMPTLY)
    await assert_idle(gateway)
    assert (gateway.kept, upstream.calls) == (0, 1)


@pytest.mark.fault(
    "The client leaves while it waits for a whole body", "upstream: cut off at once; cache: nothing"
)
async def test_waiting_for_a_body(gateway: Gateway, upstream: FaultyUpstream, leave, kind) -> None:
    upstream.then(silent)
    _, writer = await connect(gateway, chat(**kind))
    exchange = await upstream.asked()
    leave(writer)
    await asyncio.wait_for(exchange.aborted.wait(), PROMPTLY)
    await assert_idle(gateway)
    assert (gateway.kept, upstream.calls) == (0, 1)


@pytest.mark.fault("The client leaves while a failed attempt is to be repeated", "upstream: not asked again")
async def test_between_two_attempts(upstream: FaultyUpstream, leave) -> None:
    from faulty_upstream import answered, error_body
    from running_gateway import running_gateway, settings_of

    async with running_gateway({"up": settings_of(upstream.url, retries=2)}) as gateway:
        upstream.then(answered(429, error_body("busy"), "Retry-After: 0.2"))
        _, writer = await connect(gateway, chat())
        await upstream.asked()
        await asyncio.sleep(0.05)
        leave(writer)
        await assert_idle(gateway)
        await asyncio.sleep(0.3)
        assert upstream.calls == 1


@pytest.mark.fault(
    "A hundred clients leave at any moment", "upstream: each cut off; the gateway holds nothing any more"
)
async def test_many_leave(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.usual = begun
    for moment in range(100):
        _, writer = await connect(gateway, chat(stream=bool(moment % 3), temperature=moment % 2))
        await asyncio.sleep(0.0005 * (moment % 7))
        writer.transport.abort()
    await assert_idle(gateway)
    for exchange in upstream.exchanges:
        await asyncio.wait_for(exchange.aborted.wait(), PROMPTLY)
