"""The request's HTTP means two things at once, or never ends."""

import asyncio
import json
import re

import pytest
from faulty_upstream import FaultyUpstream
from running_gateway import CHAT_PATH, CLIENT_KEY, Gateway, chat

from penstock.proxy import request_body, runner

BODY = json.dumps(chat()).encode()
# What a proxy that believes the other reading would take for the next client's request.
HIDDEN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


def post(*headers: bytes, body: bytes = BODY) -> bytes:
    head = [
        f"POST {CHAT_PATH} HTTP/1.1".encode(),
        b"Host: x",
        f"Authorization: Bearer {CLIENT_KEY}".encode(),
        *headers,
    ]
    return b"\r\n".join([*head, b"", body])


async def statuses(gateway: Gateway, data: bytes) -> list[int]:
    """Of all that comes back until the gateway closes the connection, which it must."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.transport.abort()
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)]


@pytest.mark.fault(
    "`Content-Length` twice, with equal or other values", "client: 400, then closed; upstream: not asked"
)
@pytest.mark.parametrize("second", [len(BODY), 5, 0])
async def test_two_lengths(gateway: Gateway, upstream: FaultyUpstream, second: int) -> None:
    both = (b"Content-Length: %d" % len(BODY), b"Content-Length: %d" % second)
    for lengths in (both, both[::-1]):
        assert await statuses(gateway, post(*lengths, body=BODY + HIDDEN)) == [400]
    assert upstream.calls == 0


@pytest.mark.fault(
    "`Content-Length` and `Transfer-Encoding` together", "client: 400, then closed; upstream: not asked"
)
@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b"identity", b"xchunked", b"chunked, identity"])
async def test_length_and_chunks(gateway: Gateway, upstream: FaultyUpstream, coding: bytes) -> None:
    both = (b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: " + coding)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    for headers in (both, both[::-1]):
        assert await statuses(gateway, post(*headers, body=chunked + HIDDEN)) == [400]
    assert upstream.calls == 0


@pytest.mark.fault("A chunk whose size is none", "client: 400, then closed; upstream: not asked")
@pytest.mark.parametrize("size", [b"zz", b"-5", b"0x5", b"f" * 20, b""])
async def test_chunk_sizes(gateway: Gateway, upstream: FaultyUpstream, size: bytes) -> None:
    body = size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
    assert await statuses(gateway, post(b"Transfer-Encoding: chunked", body=body + HIDDEN)) == [400]
    assert upstream.calls == 0


@pytest.mark.fault(
    "Headers or a body that never end", "client: closed, or 408, then closed; upstream: not asked"
)
@pytest.mark.parametrize(("length", "seen"), [(40, []), (-10, [408])], ids=["headers", "body"])
async def test_endless(
    gateway: Gateway, upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch, length: int, seen: list[int]
) -> None:
    monkeypatch.setattr(runner, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.3)
    assert await statuses(gateway, post(b"Content-Length: %d" % len(BODY))[:length]) == seen
    assert upstream.calls == 0
