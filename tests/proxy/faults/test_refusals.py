"""The upstream refuses, or is not there."""

import json
import socket
import time
from pathlib import Path

import pytest
from faulty_upstream import FaultyUpstream, answered, error_body, good
from running_gateway import UPSTREAM_KEY, Gateway, Reply, chat, running_gateway, settings_of

from penstock.tables import Route

BUSY = error_body("slow down")
BROKEN = answered(500, error_body("out of memory"))
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])


def error_of(reply: Reply) -> dict[str, object]:
    error: dict[str, object] = json.loads(reply.body)["error"]
    return error


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.fault(
    "429 with a short `Retry-After`", "client: waits as long, and gets the answer of the next attempt"
)
@both_ways
async def test_retry_after_is_waited_for(upstream: FaultyUpstream, stream: bool) -> None:
    async with running_gateway({"up": settings_of(upstream.url, retries=1)}) as gateway:
        upstream.then(answered(429, BUSY, "Retry-After: 0.3"))
        started = time.perf_counter()
        reply = await gateway.post(chat(stream=stream))
        assert time.perf_counter() - started >= 0.3
        assert (reply.status, upstream.calls) == (200, 2)


@pytest.mark.fault("429 with a long `Retry-After`", "client: 429 at once, with that `Retry-After`")
@both_ways
async def test_a_long_retry_after_is_kept(upstream: FaultyUpstream, stream: bool) -> None:
    async with running_gateway({"up": settings_of(upstream.url, retries=2)}) as gateway:
        upstream.then(answered(429, BUSY, "Retry-After: 77"))
        started = time.perf_counter()
        reply = await gateway.post(chat(stream=stream))
        assert time.perf_counter() - started < 2
        assert (reply.status, reply.headers["retry-after"], upstream.calls) == (429, "77", 1)
        assert error_of(reply) == {
            "message": "slow down",
            "type": "some_error",
            "param": None,
            "code": "some_code",
        }


@pytest.mark.fault(
    "... and the next request", "client: 503 with the rest of it; upstream: not asked before it is over"
)
async def test_an_upstream_is_left_alone_for_as_long_as_it_asks(
    gateway: Gateway, upstream: FaultyUpstream
) -> None:
    upstream.then(answered(429, BUSY, "Retry-After: 77"))
    await gateway.post(chat())
    reply = await gateway.post(chat())
    assert (reply.status, upstream.calls) == (503, 1)
    assert 70 <= int(reply.headers["retry-after"]) <= 77
    assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"


@pytest.mark.fault("429 with a `Retry-After` that is a date", "client: 429 with the seconds until then")
async def test_a_date(gateway: Gateway, upstream: FaultyUpstream) -> None:
    from email.utils import formatdate

    upstream.then(answered(429, BUSY, f"Retry-After: {formatdate(time.time() + 100, usegmt=True)}"))
    reply = await gateway.post(chat())
    assert reply.status == 429 and 97 <= int(reply.headers["retry-after"]) <= 101


@pytest.mark.fault(
    "429 without `Retry-After`", "upstream: asked again after growing pauses; client: then 429, without one"
)
async def test_without_retry_after(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url, retries=1)}) as gateway:
        upstream.usual = answered(429, BUSY)
        started = time.perf_counter()
        reply = await gateway.post(chat())
        assert 0.1 <= time.perf_counter() - started < 2
        assert (reply.status, upstream.calls) == (429, 2)
        assert "retry-after" not in reply.headers


@pytest.mark.fault(
    "429, and there is a fallback", "client: that one's answer, at once with a long `Retry-After`"
)
async def test_busy_then_fallback(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(answered(429, BUSY, "Retry-After: 77"))
    reply = await gateway.post(chat("both"))
    assert (reply.status, reply.headers["x-penstock-model"]) == (200, "other/m")


@pytest.mark.fault("500, then an answer", "client: the answer of the second attempt")
@both_ways
async def test_retry(upstream: FaultyUpstream, stream: bool) -> None:
    async with running_gateway({"up": settings_of(upstream.url, retries=1)}) as gateway:
        upstream.then(BROKEN)
        reply = await gateway.post(chat(stream=stream))
        assert (reply.status, upstream.calls) == (200, 2)


@pytest.mark.fault(
    "500 from the first target of a route", "client: the second one's answer, named in `x-penstock-model`"
)
@both_ways
async def test_fallback(
    gateway: Gateway, upstream: FaultyUpstream, other: FaultyUpstream, stream: bool
) -> None:
    upstream.then(BROKEN)
    reply = await gateway.post(chat("both", stream=stream))
    assert (reply.status, reply.headers["x-penstock-model"]) == (200, "other/m")
    assert (upstream.calls, other.calls) == (1, 1)
    assert other.exchanges[0].fields["model"] == "m"


@pytest.mark.fault("500 from all targets", "client: the last one's status and words; cache: nothing")
@both_ways
async def test_all_fail(
    gateway: Gateway, upstream: FaultyUpstream, other: FaultyUpstream, stream: bool
) -> None:
    upstream.usual = BROKEN
    other.usual = answered(503, error_body("closed today"))
    reply = await gateway.post(chat("both", stream=stream))
    assert (reply.status, error_of(reply)["message"]) == (503, "closed today")
    assert (upstream.calls, other.calls, gateway.kept) == (1, 1, 0)


@pytest.mark.fault("500 for ever", "upstream: asked as often as `retries` allows, and not once more")
async def test_retries_are_bounded(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url, retries=2)}) as gateway:
        upstream.usual = BROKEN
        reply = await gateway.post(chat())
        assert (reply.status, upstream.calls) == (500, 3)


@pytest.mark.fault(
    "400: the request is wrong", "client: that 400 with the upstream's words; no other attempt or target"
)
async def test_the_clients_fault(gateway: Gateway, upstream: FaultyUpstream, other: FaultyUpstream) -> None:
    upstream.then(answered(400, error_body("bad temperature", param="temperature")))
    reply = await gateway.post(chat("both"))
    assert reply.status == 400
    assert error_of(reply) | {"message": "bad temperature", "param": "temperature"} == error_of(reply)
    assert (upstream.calls, other.calls) == (1, 0)


@pytest.mark.fault("400 whose body is no JSON", "client: 400 in OpenAI's form, the text as its message")
async def test_an_error_that_is_no_json(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(answered(400, b"<h1>Bad \xff</h1>", "Content-Type: text/html"))
    reply = await gateway.post(chat())
    assert reply.status == 400 and str(error_of(reply)["message"]).startswith("<h1>Bad")


@pytest.mark.fault(
    "401 or 403: our key is not taken", "client: 502, never 401; upstream: not asked again with that key"
)
@pytest.mark.parametrize("status", [401, 403])
async def test_our_key_is_wrong(upstream: FaultyUpstream, status: int) -> None:
    async with running_gateway({"up": settings_of(upstream.url, retries=2)}) as gateway:
        upstream.usual = answered(status, error_body(f"Incorrect API key provided: {UPSTREAM_KEY}"))
        reply = await gateway.post(chat())
        assert (reply.status, upstream.calls) == (502, 1)
        assert "www-authenticate" not in reply.headers
        assert UPSTREAM_KEY.encode() not in reply.body


@pytest.mark.fault("... and there is a fallback", "client: that one's answer")
async def test_our_key_is_wrong_here(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(answered(401, error_body("who are you?")))
    assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"


@pytest.mark.fault(
    "A redirect, 204 or another status that is no answer", "client: 502; the redirect is not followed"
)
@pytest.mark.parametrize("status", [204, 206, 302, 307])
async def test_a_redirect(
    gateway: Gateway, upstream: FaultyUpstream, other: FaultyUpstream, status: int
) -> None:
    behaviour = answered(
        status, b"" if status == 204 else b"moved", f"Location: {other.url}/chat/completions"
    )
    upstream.then(behaviour, behaviour)
    reply = await gateway.post(chat())
    assert (reply.status, upstream.calls, other.calls) == (502, 1, 0)
    assert "location" not in reply.headers
    assert str(status) in str(error_of(reply)["message"])
    assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"


@pytest.mark.fault(
    "Nothing listens at the upstream's address", "client: 502; with a fallback, that one's answer"
)
async def test_connection_refused(other: FaultyUpstream, tmp_path: Path) -> None:
    upstreams = {"up": settings_of(f"http://127.0.0.1:{free_port()}/v1"), "other": settings_of(other.url)}
    async with running_gateway(upstreams, routes={"both": Route(targets=("up/m", "other/m"))}) as gateway:
        reply = await gateway.post(chat(stream=True))
        assert reply.status == 502 and "cannot be asked" in str(error_of(reply)["message"])
        assert (await gateway.post(chat("both", stream=True))).headers["x-penstock-model"] == "other/m"


@pytest.mark.fault("The upstream's name is not known", "client: 502; with a fallback, that one's answer")
async def test_no_such_host(other: FaultyUpstream) -> None:
    # RFC 6761: never resolved.
    upstreams = {"up": settings_of("http://upstream.invalid/v1"), "other": settings_of(other.url)}
    async with running_gateway(upstreams, routes={"both": Route(targets=("up/m", "other/m"))}) as gateway:
        reply = await gateway.post(chat())
        assert reply.status in (502, 504) and "upstream.invalid" in str(error_of(reply)["message"])
        assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"


@pytest.mark.fault("The upstream does not speak HTTP", "client: 502; with a fallback, that one's answer")
async def test_no_http(gateway: Gateway, upstream: FaultyUpstream) -> None:
    async def behaviour(exchange) -> None:
        await exchange.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        exchange.close()

    upstream.then(behaviour, behaviour)
    assert (await gateway.post(chat())).status == 502
    assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"


@pytest.mark.fault(
    "A kept connection was closed meanwhile by the upstream", "client: the answer, over a new one"
)
async def test_a_stale_connection(upstream: FaultyUpstream) -> None:
    async with running_gateway({"up": settings_of(upstream.url, retries=1)}) as gateway:

        async def last(exchange) -> None:
            await good()(exchange)
            exchange.close()

        upstream.then(last)
        for _ in range(3):
            assert (await gateway.post(chat())).status == 200


@pytest.mark.fault("The next target of a route is the local engine", "client: its answer")
async def test_the_engine_is_the_fallback(upstream: FaultyUpstream, engine_address: str, model: Path) -> None:
    routes = {"safe": Route(targets=("up/m", "tiny"))}
    upstreams = {"up": settings_of(upstream.url)}
    async with running_gateway(
        upstreams, routes=routes, engine_address=engine_address, model=model
    ) as gateway:
        upstream.then(BROKEN)
        reply = await gateway.post(chat("safe", max_tokens=2))
        assert (reply.status, reply.headers["x-penstock-model"]) == (200, "tiny")


@pytest.mark.fault("422 that repeats the prompt", "client: all of it; log: the status and no word of it")
async def test_an_echoed_prompt(upstream: FaultyUpstream, caplog: pytest.LogCaptureFixture) -> None:
    upstream.then(answered(422, error_body("cannot take: my secret plan")))
    async with running_gateway({"up": settings_of(upstream.url)}) as gateway:
        reply = await gateway.post(chat())
    assert reply.status == 422 and b"my secret plan" in reply.body
    assert "the upstream answered 422" in caplog.text and "secret" not in caplog.text
