"""The request is odd."""

import asyncio
import json
from pathlib import Path

import pytest
from faulty_upstream import FaultyUpstream, answered, chat_body, error_body
from running_gateway import CHAT_PATH, CLIENT_KEY, UPSTREAM_KEY, Gateway, chat, running_gateway, settings_of

from penstock.tables import Route


def nested(depth: int, **fields: object) -> bytes:
    """A request with a value of so many lists in each other."""
    body = json.dumps(chat(**fields, deep=0))
    return body.replace('"deep": 0', '"deep": ' + "[" * depth + "]" * depth).encode()


@pytest.mark.fault("A field that nobody knows, for an upstream", "upstream: gets it as it is")
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
async def test_an_unknown_field_is_forwarded(
    gateway: Gateway, upstream: FaultyUpstream, stream: bool
) -> None:
    reply = await gateway.post(chat(brand_new={"a": [1, None, "ü"]}, stream=stream))
    assert reply.status == 200
    assert upstream.exchanges[0].fields["brand_new"] == {"a": [1, None, "ü"]}


@pytest.mark.fault(
    "... for the local engine", "client: 400 that names it; on a route, the next target's answer"
)
async def test_an_unknown_field_is_refused(
    upstream: FaultyUpstream, engine_address: str, model: Path
) -> None:
    routes = {"any": Route(targets=("tiny", "up/m"))}
    upstreams = {"up": settings_of(upstream.url)}
    async with running_gateway(
        upstreams, routes=routes, engine_address=engine_address, model=model
    ) as gateway:
        reply = await gateway.post(chat("tiny", brand_new=1))
        assert (reply.status, json.loads(reply.body)["error"]["param"]) == (400, "brand_new")
        reply = await gateway.post(chat("any", brand_new=1))
        assert (reply.status, reply.headers["x-penstock-model"]) == (200, "up/m")


@pytest.mark.fault("The body is forwarded with nothing to change in it", "upstream: the client's own bytes")
async def test_bytes_are_forwarded(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url)}) as gateway:
        body = b'{"model" : "m",\r\n "messages":[{"content":"\\u00fc \xc3\xbc","role":"user"}], "seed": 1.50, "seed": 2}'
        assert (await gateway.post(body)).status == 200
        assert upstream.exchanges[0].body == body


@pytest.mark.fault("A body larger than `max_body_bytes`", "client: 413; upstream: not asked")
async def test_oversized(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url)}, max_body_bytes=100_000) as gateway:
        reply = await gateway.post(chat(messages=[{"role": "user", "content": "x" * 100_000}]))
        assert (reply.status, upstream.calls) == (413, 0)
        assert json.loads(reply.body)["error"]["code"] == "body_too_large"


@pytest.mark.fault("A body that ends before its `Content-Length`", "upstream: not asked")
@pytest.mark.parametrize("half_close", [False, True], ids=["closed", "half-closed"])
async def test_truncated(gateway: Gateway, upstream: FaultyUpstream, half_close: bool) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(chat()).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT_PATH.encode(), len(body) + 1)
    )
    writer.write(body)
    await asyncio.sleep(0.05)
    if half_close:
        writer.write_eof()
    else:
        writer.close()
    await asyncio.wait_for(reader.read(), 2)
    async with asyncio.timeout(2):
        while gateway.http.context.edge.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert upstream.calls == 0
    writer.close()


@pytest.mark.fault("A body that is no UTF-8, no JSON, or no object", "client: 400; upstream: not asked")
@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "up/m", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "up/m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"model": "up/m", "messages": []}'.encode("utf-16"),
        b'{"model": "up/m", "messages": [',
        b'{"model": "up/m", "temperature": NaN}',
        b"",
        b"[]",
        b'{"model": ["up/m"]}',
        b'{"model": null}',
    ],
)
async def test_no_json(gateway: Gateway, upstream: FaultyUpstream, body: bytes) -> None:
    reply = await gateway.post(body)
    assert (reply.status, upstream.calls) == (400, 0)
    assert json.loads(reply.body)["error"]["type"] == "invalid_request_error"


@pytest.mark.fault(
    "Lists in lists, up to hundreds or 100,000 deep",
    "client: the upstream's answer, or a 400 at once; never a 5xx",
)
@pytest.mark.parametrize("depth", [100, 300, 900, 100_000])
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
async def test_deep(upstream: FaultyUpstream, tmp_path: Path, depth: int, stream: bool) -> None:
    async with running_gateway(
        {"up": settings_of(upstream.url)}, cache_path=tmp_path, cache_no_store_patterns=("secret",)
    ) as gateway:
        reply = await gateway.post(nested(depth, stream=stream))
        assert reply.status in (200, 400)
        if depth == 100:
            assert reply.status == 200
        assert upstream.calls == (reply.status == 200)


@pytest.mark.fault(
    "`Authorization` and other headers of the client",
    "upstream: sees none of them, but its own key and the request's id",
)
async def test_headers_stay_here(gateway: Gateway, upstream: FaultyUpstream) -> None:
    given = {
        "x-request-id": "id-1",
        "Cookie": "session=1",
        "x-api-key": CLIENT_KEY,
        "OpenAI-Organization": "mine",
        "Proxy-Authorization": f"Basic {CLIENT_KEY}",
        "X-Forwarded-For": "10.0.0.1",
    }
    await gateway.post(chat(), **given)
    (exchange,) = upstream.exchanges
    assert exchange.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert exchange.headers["x-request-id"] == "id-1"
    assert CLIENT_KEY not in str(exchange.headers) and CLIENT_KEY.encode() not in exchange.body
    assert exchange.headers.keys() <= {
        *("host", "authorization", "content-type", "content-length", "accept", "accept-encoding"),
        *("user-agent", "x-request-id"),
    }


@pytest.mark.fault(
    "The upstream repeats its key in an error, a header or an error event", "client: never sees that key"
)
async def test_the_key_stays_here(gateway: Gateway, upstream: FaultyUpstream) -> None:
    from faulty_upstream import chat_events, streamed

    said = error_body(f"no credit left for key {UPSTREAM_KEY}")
    upstream.then(
        answered(402, said, f"x-debug: {UPSTREAM_KEY}"),
        answered(400, f"Bearer {UPSTREAM_KEY}".encode(), "Content-Type: text/plain"),
        answered(200, chat_body(), f"x-debug: {UPSTREAM_KEY}"),
        streamed(b"data: " + said + b"\n\n"),
        streamed(chat_events()[0], b"data: " + said + b"\n\n"),
    )
    for stream in (False, False, False, True, True):
        reply = await gateway.post(chat(stream=stream, temperature=1))
        assert UPSTREAM_KEY not in str(reply.headers)
        assert UPSTREAM_KEY.encode() not in reply.body
    assert upstream.calls == 5


@pytest.mark.fault(
    "A header or URL that would name another upstream", "upstream: only those of the settings are ever asked"
)
async def test_the_client_names_no_upstream(
    gateway: Gateway, upstream: FaultyUpstream, other: FaultyUpstream
) -> None:
    given = {"x-penstock-upstream": other.url, "x-base-url": other.url, "Host": "evil.example"}
    assert (await gateway.post(chat(base_url=other.url), **given)).status == 200
    assert (
        await gateway.post(chat(f"{other.url}/m"))
    ).status == 200  # a name like any other, for who takes any
    assert (upstream.calls, other.calls) == (2, 0)
