"""The reply is odd."""

import gzip
import json
import zlib

import pytest
from faulty_upstream import (
    Exchange,
    FaultyUpstream,
    answered,
    chat_body,
    chat_event,
    chat_events,
    streamed,
    usage_event,
)
from running_gateway import Gateway, chat

GZIP = "Content-Encoding: gzip"


@pytest.mark.fault("A body in gzip", "client: the plain body; cache: the answer")
async def test_gzip(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(answered(200, gzip.compress(chat_body()), GZIP))
    reply = await gateway.post(chat())
    assert reply.body == chat_body() and "content-encoding" not in reply.headers
    assert gateway.kept == 1


@pytest.mark.fault(
    "A stream in gzip, flushed after each event", "client: the plain events as they come; cache: the answer"
)
async def test_a_stream_in_gzip(gateway: Gateway, upstream: FaultyUpstream) -> None:
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH) for event in chat_events()]
    upstream.then(streamed(*pieces, packer.flush(), headers=[GZIP]))
    reply = await gateway.post(chat(stream=True))
    assert reply.body == b"".join(chat_events())
    assert gateway.kept == 1


@pytest.mark.fault("A body that says gzip and is none", "client: 502; cache: nothing")
async def test_no_gzip(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(answered(200, chat_body(), GZIP))
    assert (await gateway.post(chat())).status == 502
    assert gateway.kept == 0


@pytest.mark.fault(
    "A body of more than 64 MiB, also one packed into 64 KB",
    "client: 502; upstream: not asked again; cache: nothing",
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
async def test_a_huge_body(gateway: Gateway, upstream: FaultyUpstream, packed: bool) -> None:
    async def behaviour(exchange: Exchange) -> None:
        piece = b"x" * (1 << 20)
        headers = [
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
            *([GZIP] if packed else []),
        ]
        await exchange.head(200, *headers)
        packer = zlib.compressobj(wbits=31)
        for _ in range(66):
            data = packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) if packed else piece
            await exchange.chunk(data)
        await exchange.last_chunk()

    upstream.then(behaviour)
    reply = await gateway.post(chat())
    assert reply.status == 502 and b"more than" in reply.body
    assert (upstream.calls, gateway.kept) == (1, 0)


@pytest.mark.fault("A body cut short of its `Content-Length`", "client: 502; cache: nothing")
async def test_a_short_body(gateway: Gateway, upstream: FaultyUpstream) -> None:
    async def behaviour(exchange: Exchange) -> None:
        await exchange.head(200, "Content-Type: application/json", f"Content-Length: {len(chat_body()) + 10}")
        await exchange.send(chat_body())
        exchange.close()

    upstream.then(behaviour)
    assert (await gateway.post(chat())).status == 502
    assert gateway.kept == 0


@pytest.mark.fault(
    "A body that is no JSON, no object, or has no list of choices",
    "client: 502; with a fallback, that one's answer",
)
@pytest.mark.parametrize(
    "body", [b"", b"Internal error", b"[]", b"\xff", b'{"choices": 3}', b'{"choices": [null]}']
)
async def test_no_answer(gateway: Gateway, upstream: FaultyUpstream, body: bytes) -> None:
    upstream.then(answered(200, body), answered(200, body))
    reply = await gateway.post(chat())
    assert reply.status == 502 and json.loads(reply.body)["error"]["code"] == "upstream_failed"
    assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"


@pytest.mark.fault("An answer cut by `max_tokens`", "client: that answer; cache: nothing")
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
async def test_length(gateway: Gateway, upstream: FaultyUpstream, stream: bool) -> None:
    body = chat_body().replace(b'"stop"', b'"length"')
    events = [event.replace(b'"stop"', b'"length"') for event in chat_events()]
    upstream.then(streamed(*events) if stream else answered(200, body))
    reply = await gateway.post(chat(stream=stream))
    assert reply.body == (b"".join(events) if stream else body)
    assert gateway.kept == 0


@pytest.mark.fault("No usage in the reply", "client: none either, not zeros")
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
async def test_no_usage(gateway: Gateway, upstream: FaultyUpstream, stream: bool) -> None:
    whole = {name: value for name, value in json.loads(chat_body()).items() if name != "usage"}
    upstream.then(streamed(*chat_events()) if stream else answered(200, json.dumps(whole).encode()))
    for expected in ("miss", "hit"):
        reply = await gateway.post(chat(stream=stream))
        assert reply.headers["x-penstock-cache"] in (expected, "shared")
        assert b"usage" not in reply.body
        assert gateway.kept == 1


@pytest.mark.fault(
    "A usage event that only we have asked for",
    "client: does not see it, alone or beside others in a segment",
)
@pytest.mark.parametrize("at_once", [False, True], ids=["alone", "in one segment"])
async def test_usage_is_not_shown(gateway: Gateway, upstream: FaultyUpstream, at_once: bool) -> None:
    events = chat_events()
    events.insert(-1, usage_event())
    upstream.then(streamed(b"".join(events)) if at_once else streamed(*events))
    reply = await gateway.post(chat(stream=True))
    assert upstream.exchanges[0].fields["stream_options"] == {"include_usage": True}
    assert reply.body == b"".join(chat_events())


@pytest.mark.fault(
    "Tool calls, thoughts and log-probabilities in pieces",
    "client: the same bytes; a repeat: the same answer from the cache",
)
async def test_a_rich_stream(gateway: Gateway, upstream: FaultyUpstream) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    sent = [
        chat_event(role="assistant", reasoning_content="Let me "),
        chat_event(reasoning_content="see"),
        chat_event(tool_calls=[call]),
        chat_event(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}]),
        chat_event(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        chat_event(finish_reason="tool_calls"),
        chat_events()[-1],
    ]
    upstream.then(streamed(*sent))
    assert (await gateway.post(chat(stream=True))).body == b"".join(sent)
    assert gateway.kept == 1
    reply = await gateway.client().chat.completions.create(**chat())
    message = reply.choices[0].message
    assert message.tool_calls is not None and reply.choices[0].finish_reason == "tool_calls"
    assert (message.tool_calls[0].function.arguments, message.content) == ('{"a":1}', None)
    assert message.model_extra == {"reasoning_content": "Let me see"}
    assert upstream.calls == 1


@pytest.mark.fault("A request id that is no text", "client: the answer, without that id")
async def test_an_odd_request_id(gateway: Gateway, upstream: FaultyUpstream) -> None:
    async def behaviour(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: \xff\xfe\r\n"
        )
        await exchange.send(b"Content-Length: %d\r\n\r\n%b" % (len(chat_body()), chat_body()))

    upstream.then(behaviour)
    reply = await gateway.post(chat())
    assert reply.status == 200 and "x-penstock-upstream-id" not in reply.headers


@pytest.mark.fault(
    "Headers of the upstream", "client: sees none of them but its request id, as `x-penstock-upstream-id`"
)
async def test_headers_stay_there(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(
        answered(
            200,
            chat_body(),
            "x-request-id: req_1",
            "Set-Cookie: a=b",
            "openai-organization: theirs",
            "Server: x",
        )
    )
    reply = await gateway.post(chat())
    assert reply.headers["x-penstock-upstream-id"] == "req_1"
    assert not reply.headers.keys() & {"set-cookie", "openai-organization"}
    assert reply.headers["server"] == "penstock"


@pytest.mark.fault(
    "More bytes after the end of a reply", "the next client: an answer of its own, over a clean connection"
)
async def test_bytes_behind_the_end(gateway: Gateway, upstream: FaultyUpstream) -> None:
    async def behaviour(exchange: Exchange) -> None:
        await exchange.reply(200, chat_body() + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL", "X: y")
        exchange.writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nEVIL"
        )

    upstream.then(streamed(chat_event(content="x"), chat_event(finish_reason="stop"), chat_events()[-1]))
    assert (await gateway.post(chat(stream=True, seed=1))).status == 200

    async def smuggles(exchange: Exchange) -> None:
        await exchange.reply(200, chat_body())
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nEVIL"
        )

    upstream.then(smuggles)
    assert (await gateway.post(chat(seed=2))).body == chat_body()
    reply = await gateway.post(chat(seed=3))
    assert b"EVIL" not in reply.body
