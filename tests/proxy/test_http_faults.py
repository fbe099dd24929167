"""Requests that are broken, hostile or slow, as raw bytes: each gets its right status as JSON, or a closed connection; never
a 5xx, never silence, and nothing stays behind.
"""

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, running_server

from penstock.config import did_you_mean
from penstock.proxy import request_body, runner
from penstock.proxy.errors import MAX_HEADERS, MAX_LINE_BYTES
from penstock.proxy.openai_types import MAX_DEPTH, ChatRequest

CHAT = b"/v1/chat/completions"


def chat(**fields: Any) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps({"model": "tiny", "messages": messages, "max_tokens": 2, **fields}).encode()


def with_field(field: bytes) -> bytes:
    return chat()[:-1] + b"," + field + b"}"


def request(*headers: bytes, line: bytes = b"GET /health HTTP/1.1", body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: x", *headers, b"", body])


def post(body: bytes, *headers: bytes, path: bytes = CHAT) -> bytes:
    """With its length, and closed afterwards."""
    length = b"Content-Length: %d" % len(body)
    return request(length, b"Connection: close", *headers, line=b"POST " + path + b" HTTP/1.1", body=body)


def chunked(body: bytes, *headers: bytes) -> bytes:
    encoding = b"Transfer-Encoding: chunked"
    return request(encoding, b"Connection: close", *headers, line=b"POST " + CHAT + b" HTTP/1.1", body=body)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@asynccontextmanager
async def connection(
    server: RunningServer,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def sent(server: RunningServer, data: bytes, *, seconds: float = 10) -> bytes:
    """Everything that comes back until the server closes, which it must."""
    async with connection(server) as (reader, writer), asyncio.timeout(seconds):
        writer.write(data)
        return await reader.read()


def status_of(answer: bytes) -> int:
    """Of the last response in it, whose body must be an error's JSON unless it is a success."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    status = int(head[head.rindex(b"HTTP/1.") :].split()[1])
    if status >= 400:
        assert json.loads(body)["error"]["message"].endswith("."), body
        assert len(body) < 3000, "what was sent is not sent back at length"
    return status


LONG = b"x" * (MAX_LINE_BYTES + 10)
HEADERS = [b"a%d: x" % number for number in range(MAX_HEADERS + 10)]
BROKEN_HTTP = {
    "no http at all": (b"this is not http\r\n\r\n", 400),
    "http/2 on a plain port": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an unknown version": (request(line=b"GET /health HTTP/9.9"), 400),
    "an unknown method": (request(line=b"FROB /health HTTP/1.1"), 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (request(b"Host: y"), 400),
    "too long a target": (request(line=b"GET /" + LONG + b" HTTP/1.1"), 431),
    "a target without end": (b"GET /" + b"x" * 1_000_000, 431),
    "too long a header": (request(b"A: " + LONG), 431),
    "too long a header's name": (request(LONG + b": a"), 431),
    "too many headers": (request(*HEADERS), 431),
    "headers without end": (request(*HEADERS * 100)[:-4], 431),
    "a folded header": (request(b"A: b", b" c"), 400),
    "a space before the colon": (request(b"A : b"), 400),
    "a NUL in a header": (request(b"A: b\0c"), 400),
    "a bare CR in a header": (request(b"A: b\rc"), 400),
    "bare LFs": (b"GET /health HTTP/1.1\nHost: x\n\n", 400),
    "bytes in the target": (request(line=b"GET /v1/models/\xff HTTP/1.1"), 400),
    "a target of another form": (request(line=b"GET health HTTP/1.1"), 400),
    "an address that is none": (request(line=b"GET http://[::1/health HTTP/1.1"), 400),
    "a port that is none": (request(line=b"GET http://x:99999999/health HTTP/1.1"), 400),
    "equal lengths": (post(chat(), b"Content-Length: %d" % len(chat())), 400),
    "other lengths": (post(chat(), b"Content-Length: 5"), 400),
    "a list of lengths": (request(b"Content-Length: 5, 5"), 400),
    "a negative length": (request(b"Content-Length: -5"), 400),
    "a signed length": (request(b"Content-Length: +5"), 400),
    "a hexadecimal length": (request(b"Content-Length: 0x5"), 400),
    "a length beyond 64 bits": (request(b"Content-Length: 99999999999999999999999"), 400),
    "length and chunks": (chunked(b"0\r\n\r\n", b"Content-Length: 4"), 400),
    "chunks twice": (chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked"), 400),
    "chunks by another name": (request(b"Transfer-Encoding: xchunked"), 400),
    "chunks after a vertical tab": (request(b"Transfer-Encoding: \x0bchunked"), 400),
    "a chunk of no size": (chunked(b"zz\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk of negative size": (chunked(b"-5\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk beyond 64 bits": (chunked(b"f" * 20 + b"\r\nhello\r\n0\r\n\r\n"), 400),
    "a chunk longer than it says": (chunked(b"3\r\nhello\r\n0\r\n\r\n"), 400),
    "trailers without end": (chunked(b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 10_000), 431),
    "garbage after a request": (request() + b"garbage\r\n\r\n", 400),
    "an expectation": (post(chat(), b"Expect: 200-maybe"), 417),
    "an expectation of nothing": (
        request(b"Expect: x", b"Connection: close", line=b"GET /nowhere HTTP/1.1"),
        417,
    ),
    "a tunnel": (request(b"Connection: close", line=b"CONNECT x:80 HTTP/1.1"), 404),
    "options of all": (request(b"Connection: close", line=b"OPTIONS * HTTP/1.1"), 404),
    "a trace": (request(b"Connection: close", line=b"TRACE /health HTTP/1.1"), 405),
    "a line end in a path": (request(b"Connection: close", line=b"GET /a%0d%0ab HTTP/1.1"), 404),
}

NAMED = {
    "an answer": post(chat()),
    "a stream": post(chat(stream=True)),
    "a refusal": post(b"{}"),
    "no such route": request(b"Connection: close", line=b"GET /nowhere HTTP/1.1"),
    "broken HTTP": BROKEN_HTTP["a bare CR in a header"][0],
    "an expectation": BROKEN_HTTP["an expectation"][0],
}


async def test_a_refusal_reaches_a_client_that_goes_on_sending(server: RunningServer) -> None:
    async with connection(server) as (reader, writer), asyncio.timeout(10):
        writer.write(b"GET /" + LONG)
        for _ in range(10):
            await asyncio.sleep(0.02)
            writer.write(b"x" * 100_000)
        assert status_of(await reader.read()) == 431


@pytest.mark.parametrize("data", NAMED.values(), ids=NAMED)
async def test_every_response_has_an_id_and_no_versions(server: RunningServer, data: bytes) -> None:
    head, _, _ = (await sent(server, data)).partition(b"\r\n\r\n")
    names = [line.partition(b": ") for line in head.lower().split(b"\r\n")]
    assert [value for name, _, value in names if name == b"server"] == [b"penstock"]
    assert [bool(value) for name, _, value in names if name == b"x-request-id"] == [True]


GZIP, DEFLATE = b"Content-Encoding: gzip", b"Content-Encoding: deflate"
ZEROS = gzip.compress(b" " * (64 << 20))
bare = zlib.compressobj(wbits=-15)
BARE = bare.compress(chat()) + bare.flush()
BODIES = {
    "chunks of a byte": (chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in chat()) + b"0\r\n\r\n"), 200),
    "a long chunk extension": (
        chunked(b"%x;" % len(chat()) + b"x" * 50_000 + b"\r\n" + chat() + b"\r\n0\r\n\r\n"),
        200,
    ),
    "truncated": (post(chat()[:-4]), 400),
    "more after the end": (post(chat() + b"x"), 400),
    "empty": (post(b""), 400),
    "a terabyte to come": (post(b"{", b"X: y").replace(b"Length: 1", b"Length: 1000000000000"), 413),
    "over the limit": (post(b" " * (9 << 20)), 413),
    "over the limit in chunks": (chunked(b"900000\r\n" + b" " * 0x900000 + b"\r\n0\r\n\r\n"), 413),
    "a byte order mark": (post(b"\xef\xbb\xbf" + chat()), 400),
    "UTF-16": (post(chat().decode().encode("utf-16")), 400),
    "not UTF-8": (post(chat().replace(b"hi", b"\xff\xfe")), 400),
    "overlong UTF-8": (post(chat().replace(b"hi", b"\xc0\xaf")), 400),
    "half a surrogate pair": (post(chat().replace(b"hi", b"\\ud800")), 400),
    "a raw NUL": (post(chat().replace(b"hi", b"\0")), 400),
    "a NUL by its name": (post(chat().replace(b"hi", b"\\u0000")), 200),
    "lists in lists": (post(nested(100_000)), 400),
    "objects in objects": (post(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), 400),
    "deep content": (post(chat().replace(b'"hi"', nested(1000))), 400),
    "deep content to count": (post(chat().replace(b'"hi"', nested(1000)), path=b"/tokenize"), 400),
    "a deep variable": (post(with_field(b'"chat_template_kwargs":{"a":' + nested(1000) + b"}")), 400),
    "a variable just too deep": (
        post(with_field(b'"chat_template_kwargs":{"a":' + nested(MAX_DEPTH - 1) + b"}")),
        400,
    ),
    "a variable not too deep": (
        post(with_field(b'"chat_template_kwargs":{"a":' + nested(MAX_DEPTH - 2) + b"}")),
        200,
    ),
    "a text full of brackets": (post(chat().replace(b"hi", b"[{" * 100)), 200),
    "an integer of 5,000 digits": (post(with_field(b'"seed":' + b"9" * 5000)), 400),
    "an integer of 65 bits": (post(chat(seed=1 << 65)), 400),
    "an integer of 64 bits": (post(chat(max_tokens=1 << 63)), 400),
    "infinity": (post(with_field(b'"temperature":1e400')), 400),
    "not a number": (post(with_field(b'"temperature":NaN')), 400),
    "a number of 100,000 digits": (post(with_field(b'"temperature":0.' + b"1" * 100_000)), 200),
    # As every JSON library reads it; no other part of the path has read the first.
    "a key twice": (post(b'{"model":"other",' + chat()[1:]), 200),
    "a model's name of a megabyte": (post(chat(model="x" * 1_000_000)), 404),
    "a field's name of a megabyte": (post(chat(**{"x" * 1_000_000: 1})), 400),
    "a grammar too hard to follow": (post(chat(guided_regex="(a|b|ab)*c{1000000}", max_tokens=50)), 400),
    "a form": (post(b"a=b", b"Content-Type: application/x-www-form-urlencoded"), 400),
    "gzip": (post(gzip.compress(chat()), GZIP), 200),
    "gzip's other name": (post(gzip.compress(chat()), b"Content-Encoding: GZIP"), 200),
    "deflate": (post(zlib.compress(chat()), DEFLATE), 200),
    "deflate as some send it": (post(BARE, DEFLATE), 200),
    "no gzip": (post(chat(), GZIP), 400),
    "half of a gzip": (post(gzip.compress(chat())[:-10], GZIP), 400),
    "two gzips": (post(gzip.compress(chat()) * 2, GZIP), 400),
    "a gzip of zeros": (post(ZEROS, GZIP), 413),
    "a gzip in a gzip": (post(gzip.compress(ZEROS), b"Content-Encoding: gzip, gzip"), 415),
    "brotli": (post(chat(), b"Content-Encoding: br"), 415),
    "an unknown encoding": (post(chat(), b"Content-Encoding: rot13"), 415),
}


@pytest.mark.parametrize(
    ("data", "status"), [pytest.param(*case, id=name) for name, case in (BROKEN_HTTP | BODIES).items()]
)
async def test_its_status_as_json_and_no_more(
    server: RunningServer, data: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert status_of(await sent(server, data)) == status
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text
    assert all(len(record.getMessage()) < 3000 for record in caplog.records)
    await server.idle()


async def test_a_packed_body_costs_what_its_limit_costs(server: RunningServer) -> None:
    """Of 64 MiB of blanks 8 are unpacked; the rest is thrown away as it came."""
    await sent(server, post(b" " * 1000))
    started = time.process_time()
    assert status_of(await sent(server, post(ZEROS * 20, GZIP))) == 413
    assert time.process_time() - started < 0.5


async def test_a_body_of_unknown_fields_is_dropped_in_no_time(engine_address: str, model: Path) -> None:
    fields = {f"temperatur{number}": 1 for number in range(50_000)}
    started = time.process_time()
    for name in list(fields)[:500]:
        did_you_mean(name, [*ChatRequest.__struct_fields__])
    comparing = (time.process_time() - started) * 100
    async with running_server(engine_address, model, unsupported="drop") as lenient:
        started = time.process_time()
        answer = await sent(lenient, post(chat(**fields)))
        assert status_of(answer) == 200
        assert time.process_time() - started < comparing / 3, "as when each was compared with the known ones"
        header = next(line for line in answer.split(b"\r\n") if line.startswith(b"x-penstock-dropped"))
        assert len(header) < 4096 and header.endswith(b"...")


async def test_requests_sent_at_once_are_answered_in_turn(server: RunningServer) -> None:
    lines = [b"GET /health HTTP/1.1", b"GET /v1/models HTTP/1.1", b"GET /nowhere HTTP/1.1"]
    answer = await sent(
        server, b"".join(request(line=line) for line in lines * 30) + request(b"Connection: close")
    )
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"404"] * 30 + [b"200"]


async def test_an_absolute_target_is_the_same_request(server: RunningServer) -> None:
    close = b"Connection: close"
    answer = await sent(server, request(close, line=b"GET http://elsewhere.example/health HTTP/1.1"))
    assert status_of(answer) == 200


@pytest.mark.parametrize("beginning", [b"GET /", request()[:-2], request() + b"GET /"])
async def test_a_head_that_comes_byte_by_byte_is_cut(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    """However alive the client keeps looking."""
    monkeypatch.setattr(runner, "HEAD_SECONDS", 0.3)
    async with connection(server) as (reader, writer), asyncio.timeout(5):
        writer.write(beginning)
        if beginning.startswith(request()):
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        started = time.perf_counter()
        while not writer.transport.is_closing() and time.perf_counter() - started < 3:
            writer.write(b"x")
            await asyncio.sleep(0.02)
        assert 0.2 < time.perf_counter() - started < 2.5


async def test_a_head_in_pieces_is_fine(server: RunningServer) -> None:
    async with connection(server) as (reader, writer), asyncio.timeout(5):
        for _ in range(2):  # kept in between
            for piece in (b"GET /hea", b"lth HTTP/1.1\r\nHo", b"st: x\r\n\r", b"\n"):
                writer.write(piece)
                await asyncio.sleep(0.01)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")


async def test_a_body_that_comes_byte_by_byte_is_cut(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.3)
    async with connection(server) as (reader, writer), asyncio.timeout(5):
        writer.write(request(b"Content-Length: 1000", line=b"POST " + CHAT + b" HTTP/1.1"))

        async def trickle() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        try:
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408")
        finally:
            trickling.cancel()


async def test_an_idle_connection_is_closed(
    engine_address: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "KEEPALIVE_SECONDS", 0.3)
    async with running_server(engine_address, model) as server:
        for first in (b"", request()):
            started = time.perf_counter()
            answer = await sent(server, first, seconds=5)
            assert (answer != b"") == (first != b"")
            assert 0.25 < time.perf_counter() - started < 2


async def test_a_crowd_is_told_and_the_others_are_served(
    engine_address: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "connection_limit", lambda: 3)
    async with running_server(engine_address, model) as server:
        async with connection(server) as (reader, writer), connection(server), connection(server):
            answer = await sent(server, b"")
            assert status_of(answer) == 503 and b"Retry-After: 1" in answer
            writer.write(request(b"Connection: close"))
            assert status_of(await reader.read()) == 200, "who was there first is served"
        async with asyncio.timeout(5):
            while status_of(await sent(server, request(b"Connection: close"))) != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
