"""A stream breaks."""

import asyncio
import json

import openai
import pytest
from faulty_upstream import (
    DONE,
    Exchange,
    FaultyUpstream,
    chat_event,
    chat_events,
    error_body,
    good,
    streamed,
    streamed_then,
)
from running_gateway import Gateway, Reply, chat

from penstock.proxy.upstreams.events import MAX_EVENT_BYTES

ROLE, HEL, *_ = chat_events()
STREAM = chat(stream=True)
FALLING_BACK = chat("both", stream=True)


def ends_with_an_error(reply: Reply, *, after: int, code: str = "upstream_failed") -> str:
    """`after` whole events, an error event, and nothing more; its message."""
    assert (reply.status, reply.cut) == (200, False)
    assert len(reply.events) == after + 1 and reply.body.endswith(b"\n\n")
    error = json.loads(reply.events[-1])["error"]
    assert error["code"] == code
    message: str = error["message"]
    return message


@pytest.mark.fault(
    "The upstream ends its stream with neither `finish_reason` nor `[DONE]`",
    "client: an error event; cache: nothing",
)
async def test_no_finish(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed(ROLE, HEL))
    reply = await gateway.post(STREAM)
    assert "ended its stream before its answer was finished" in ends_with_an_error(reply, after=2)
    assert gateway.kept == 0


@pytest.mark.fault("... seen by OpenAI's client", "client: raises `APIError` after the text that came")
async def test_no_finish_in_the_sdk(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed(ROLE, HEL))
    text = ""
    with pytest.raises(openai.APIError, match="before its answer was finished"):
        async for chunk in await gateway.client().chat.completions.create(**STREAM):
            text += chunk.choices[0].delta.content or ""
    assert text == "Hel"


@pytest.mark.fault(
    "It ends with `[DONE]`, but without a `finish_reason`", "client: what came; cache: nothing"
)
async def test_done_without_finish(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed(ROLE, HEL, DONE))
    reply = await gateway.post(STREAM)
    assert reply.body == ROLE + HEL + DONE
    assert gateway.kept == 0


@pytest.mark.fault(
    "It ends with a `finish_reason`, but without `[DONE]`", "client: what came; cache: nothing"
)
async def test_finish_without_done(gateway: Gateway, upstream: FaultyUpstream) -> None:
    sent = chat_events()[:-1]
    upstream.then(streamed(*sent))
    reply = await gateway.post(STREAM)
    assert reply.body == b"".join(sent)
    assert gateway.kept == 0


@pytest.mark.fault(
    "Of two choices one has ended when the stream does", "client: an error event; cache: nothing"
)
@pytest.mark.parametrize("begun", [False, True], ids=["the other not begun", "the other begun"])
async def test_one_choice_of_two(gateway: Gateway, upstream: FaultyUpstream, begun: bool) -> None:
    second = [chat_event(content="x", index=1)] if begun else []
    upstream.then(streamed(ROLE, HEL, *second, chat_event(finish_reason="stop")))
    ends_with_an_error(await gateway.post(chat(stream=True, n=2)), after=3 + begun)
    assert gateway.kept == 0


@pytest.mark.fault(
    "It sends nothing but comments and ends", "client: 502; with a fallback, that one's answer"
)
async def test_nothing_but_comments(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed(b": hello\n\n", b": still there\n\n"), streamed(b": hello\n\n"))
    assert (await gateway.post(STREAM)).status == 502
    reply = await gateway.post(FALLING_BACK)
    assert (reply.status, reply.headers["x-penstock-model"]) == (200, "other/m")


@pytest.mark.fault(
    "TCP is reset in the middle of an event", "client: whole events, then an error event; cache: nothing"
)
async def test_cut_within_an_event(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed_then(Exchange.cut, ROLE, HEL, chat_events()[2][:30]))
    ends_with_an_error(await gateway.post(STREAM), after=2)
    assert gateway.kept == 0


@pytest.mark.fault("TCP is reset between two events", "client: an error event; cache: nothing")
async def test_cut_between_events(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed_then(Exchange.cut, ROLE, HEL))
    ends_with_an_error(await gateway.post(STREAM), after=2)
    assert gateway.kept == 0


@pytest.mark.fault(
    "The connection is closed before the last chunk of HTTP", "client: an error event; cache: nothing"
)
async def test_closed_too_early(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed_then(Exchange.close, *chat_events()[:-1]))
    ends_with_an_error(await gateway.post(STREAM), after=len(chat_events()) - 1)
    assert gateway.kept == 0


@pytest.mark.fault(
    "A reply without length or chunks, whose end is the connection's, ends within an event",
    "client: whole events, then an error event; cache: nothing",
)
async def test_an_end_that_looks_regular(gateway: Gateway, upstream: FaultyUpstream) -> None:
    async def behaviour(exchange: Exchange) -> None:
        await exchange.head(200, "Content-Type: text/event-stream", "Connection: close")
        await exchange.send(ROLE + HEL + HEL[:20])
        exchange.close()

    upstream.then(behaviour)
    assert "within an event" in ends_with_an_error(await gateway.post(STREAM), after=2)
    assert gateway.kept == 0


@pytest.mark.fault(
    "The connection is cut before the first token", "client: 502; with a fallback, that one's answer"
)
async def test_cut_before_the_first_token(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed_then(Exchange.cut), streamed_then(Exchange.cut, b"data: {"))
    assert (await gateway.post(STREAM)).status == 502
    reply = await gateway.post(FALLING_BACK)
    assert (reply.status, reply.headers["x-penstock-model"]) == (200, "other/m")


MALFORMED = [
    b"data: {\n\n",
    b"data: [1]\n\n",
    b"data: \xff\xfe\n\n",
    b'data: {"choices":[7]}\n\n',
    b'data: {"choices":3}\n\n',
]


@pytest.mark.fault("A malformed event in mid-stream", "client: an error event instead of it; cache: nothing")
@pytest.mark.parametrize("event", MALFORMED)
async def test_malformed(gateway: Gateway, upstream: FaultyUpstream, event: bytes) -> None:
    upstream.then(streamed(ROLE, HEL, event, *chat_events()[2:]))
    ends_with_an_error(await gateway.post(STREAM), after=2)
    assert gateway.kept == 0


@pytest.mark.fault("A malformed first event", "client: 502; with a fallback, that one's answer")
@pytest.mark.parametrize("event", MALFORMED)
async def test_malformed_at_once(gateway: Gateway, upstream: FaultyUpstream, event: bytes) -> None:
    upstream.then(streamed(event, DONE), streamed(event, DONE))
    assert (await gateway.post(STREAM)).status == 502
    reply = await gateway.post(FALLING_BACK)
    assert (reply.status, reply.headers["x-penstock-model"]) == (200, "other/m")


@pytest.mark.fault(
    "An error event in mid-stream", "client: an error event with the upstream's words, nothing after it"
)
async def test_an_error_event(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed(ROLE, HEL, b"data: " + error_body("out of memory") + b"\n\n", DONE))
    assert "out of memory" in ends_with_an_error(await gateway.post(STREAM), after=2)
    assert gateway.kept == 0


@pytest.mark.fault(
    "An error as the first event", "client: 502 with the upstream's words; with a fallback, that one's answer"
)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with [DONE]"])
async def test_an_error_event_at_once(gateway: Gateway, upstream: FaultyUpstream, together: bool) -> None:
    error = b"data: " + error_body("out of memory") + b"\n\n"
    behaviour = streamed(b": hello\n\n" + error + DONE) if together else streamed(error, DONE)
    upstream.then(behaviour, behaviour)
    reply = await gateway.post(STREAM)
    assert reply.status == 502 and b"out of memory" in reply.body
    reply = await gateway.post(FALLING_BACK)
    assert (reply.status, reply.headers["x-penstock-model"]) == (200, "other/m")


@pytest.mark.fault(
    "Comments come before the first token and between events", "client: the same bytes; cache: the answer"
)
async def test_comments(gateway: Gateway, upstream: FaultyUpstream) -> None:
    comment = b": keep-alive\n\n"
    sent = [comment, comment, *(part for event in chat_events() for part in (event, comment))]
    upstream.then(streamed(*sent))
    reply = await gateway.post(STREAM)
    assert reply.body == b"".join(sent)
    assert gateway.kept == 1


@pytest.mark.fault("Events end in CRLF, LF or both", "client: the same bytes; cache: the answer")
@pytest.mark.parametrize("mixed", [False, True], ids=["CRLF", "both"])
async def test_line_ends(gateway: Gateway, upstream: FaultyUpstream, mixed: bool) -> None:
    ends = [b"\r\n\r\n", b"\n\n", b"\n\r\n"] if mixed else [b"\r\n\r\n"]
    sent = b"".join(event[:-2] + ends[place % len(ends)] for place, event in enumerate(chat_events()))
    upstream.then(streamed(sent[:100], sent[100:]))
    reply = await gateway.post(STREAM)
    assert reply.body == sent
    assert gateway.kept == 1


@pytest.mark.fault("A stream comes byte by byte", "client: the same bytes; cache: the answer")
async def test_byte_by_byte(gateway: Gateway, upstream: FaultyUpstream) -> None:
    sent = b"".join(chat_events())
    upstream.then(streamed(*(bytes([byte]) for byte in sent)))
    reply = await gateway.post(STREAM)
    assert reply.body == sent
    assert gateway.kept == 1


@pytest.mark.fault("An event of more than 8 MiB", "client: an error event; upstream: cut off")
async def test_a_huge_event(gateway: Gateway, upstream: FaultyUpstream) -> None:
    piece = b"x" * (1 << 20)
    never_ending = [piece] * ((MAX_EVENT_BYTES >> 20) + 32)
    upstream.then(streamed(ROLE, b'data: {"', *never_ending))
    assert "longer than" in ends_with_an_error(await gateway.post(STREAM), after=1)
    await asyncio.wait_for((await upstream.asked()).aborted.wait(), 2)


@pytest.mark.fault(
    "The upstream answers a request for a stream with JSON", "client: 502; with a fallback, that one's answer"
)
async def test_json_for_a_stream(gateway: Gateway, upstream: FaultyUpstream) -> None:
    async def behaviour(exchange: Exchange) -> None:
        exchange.body = exchange.body.replace(b'"stream": true', b'"stream": false').replace(
            b'"stream":true', b'"stream":false'
        )
        await good()(exchange)

    upstream.then(behaviour, behaviour)
    reply = await gateway.post(STREAM)
    assert reply.status == 502 and b"no stream" in reply.body
    assert (await gateway.post(FALLING_BACK)).headers["x-penstock-model"] == "other/m"
    assert gateway.kept == 1


@pytest.mark.fault(
    "It answers another request with a stream", "client: 502; with a fallback, that one's answer"
)
async def test_a_stream_for_json(gateway: Gateway, upstream: FaultyUpstream) -> None:
    upstream.then(streamed(*chat_events()), streamed(*chat_events()))
    reply = await gateway.post(chat())
    assert reply.status == 502 and b"a stream" in reply.body
    assert (await gateway.post(chat("both"))).headers["x-penstock-model"] == "other/m"
    assert gateway.kept == 1
