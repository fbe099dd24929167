"""The client of upstreams, against servers that send what it takes to break one: a socket, and bytes."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.proxy.upstreams import http_client
from penstock.proxy.upstreams.connection import BrokenReply, ConnectTimedOut, NotConnected, Response
from penstock.proxy.upstreams.http_client import HttpClient

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nfir\r\n2\r\nst\r\n0\r\nTrailer: t\r\n\r\n"
)
UNTIL_END = b"HTTP/1.1 200 OK\r\n\r\nall of it"


class Server:
    """Attributes:
    heads: of all requests, in the order they came; `bodies`: theirs.
    connections: that were made; `left`: that the client has ended.
    """

    def __init__(
        self, play: Callable[["Server", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ):
        self._play = play
        self.port = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.left = asyncio.Semaphore(0)

    async def question(self, reader: asyncio.StreamReader) -> int:
        """Reads one; which in number it is, from 1."""
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        length = int(self.heads[-1].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.bodies.append(await reader.readexactly(length))
        return len(self.heads)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._play(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.release()
        finally:
            writer.close()


def always(*pieces: bytes, then_close: bool = False, between: float = 0.0):
    """Answers every question with these pieces."""

    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await server.question(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(between)
            if then_close:
                return

    return play


@asynccontextmanager
async def asked(play, host: str = "127.0.0.1", **options) -> AsyncIterator[tuple[HttpClient, Server]]:
    """A server that plays this, and a client for it."""
    server = Server(play)
    listening = await asyncio.start_server(server.serve, host, 0, ssl=options.pop("tls", None))
    server.port = listening.sockets[0].getsockname()[1]
    written = f"[{host}]" if ":" in host else options.pop("name", host)
    scheme = options.pop("scheme", "http")
    client = HttpClient(
        f"{scheme}://{written}:{server.port}/v1",
        {"Authorization": "Bearer k"},
        **{"connect_timeout": 5.0, **options},
    )
    try:
        yield client, server
    finally:
        await client.close()
        listening.close()


async def post(client: HttpClient, body: bytes = b"{}", seconds: float = 5.0, **headers: str) -> Response:
    return await client.post("/chat", headers, body, seconds=seconds)


async def whole(client: HttpClient) -> bytes:
    """The body of a reply, read to its end."""
    response = await post(client)
    assert response.status == 200
    data = await response.content.read()
    response.release()
    return data


async def test_what_is_sent() -> None:
    async with asked(always(OK)) as (client, server):
        await client.post("/chat", {"x-request-id": "7", "beta": "caf\udce9"}, b'{"a": 1}', seconds=5)
        assert server.heads == [
            b"POST /v1/chat HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer k\r\nx-request-id: 7\r\n"
            b"beta: caf\xe9\r\nContent-Length: 8\r\n\r\n" % server.port
        ]
        assert server.bodies == [b'{"a": 1}']
        for value in ("a\r\nHost: other", "a\nb", "a\rb"):
            with pytest.raises(ValueError, match="line end"):
                await client.post("/chat", {"beta": value}, b"", seconds=5)
        assert server.connections == 1


async def test_a_header_of_the_request_takes_the_place_of_the_usual_one() -> None:
    async with asked(always(OK)) as (client, server):
        for _ in range(2):
            await client.post("/chat", {"authorization": "Bearer other"}, b"", seconds=5)
            assert b"Bearer k" not in server.heads[-1] and server.heads[-1].count(b"uthorization") == 1
        await client.post("/chat", {}, b"", seconds=5)
        assert b"Authorization: Bearer k" in server.heads[-1]


@pytest.mark.parametrize(
    ("reply", "body", "closes"),
    [(OK, b"ok", False), (CHUNKED, b"first", False), (UNTIL_END, b"all of it", True)],
    ids=["length", "chunked", "until the end"],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_replies_in_pieces(reply: bytes, body: bytes, closes: bool, size: int) -> None:
    pieces = [reply[place : place + size] for place in range(0, len(reply), size)]
    async with asked(always(*pieces, then_close=closes)) as (client, server):
        for _ in range(2):
            response = await post(client)
            assert (response.status, response.reason) == (200, "OK")
            assert await response.content.read() == body
            response.release()
        assert server.connections == (2 if closes else 1)


async def test_interim_replies_are_passed_over() -> None:
    async with asked(
        always(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK)
    ) as (
        client,
        server,
    ):
        assert [await whole(client), await whole(client)] == [b"ok", b"ok"]
        assert server.connections == 1


async def test_no_body() -> None:
    async with asked(always(b"HTTP/1.1 204 No Content\r\n\r\n")) as (client, server):
        for _ in range(2):
            response = await post(client)
            assert response.status == 204 and await response.content.read() == b""
            response.release()
        assert server.connections == 1


@pytest.mark.parametrize(
    "reply",
    [
        OK.replace(b"Content-Length", b"Connection: close\r\nContent-Length"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        OK + OK,
        OK + b"HTTP/1.1 2",
        OK + b"HTTP/1.1 200 OK\r\nX: \x00",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" + OK,
    ],
    ids=["close", "HTTP/1.0", "two replies", "more than one", "and that broken", "another protocol"],
)
async def test_connections_that_cannot_go_on(reply: bytes) -> None:
    async with asked(always(reply)) as (client, server):
        for _ in range(3):
            response = await post(client)
            await response.content.read()
            response.release()
        assert server.connections == 3


async def test_bytes_that_nobody_asked_for() -> None:
    async with asked(always(OK, OK.replace(b"ok", b"no"), between=0.05)) as (client, server):
        assert await whole(client) == b"ok"
        await asyncio.sleep(0.1)  # in which the other comes
        assert await whole(client) == b"ok"
        assert server.connections == 2


async def test_a_reply_before_the_question_was_sent() -> None:
    """The connection still has the rest of the question in it."""

    async def impatient(_server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(OK.replace(b"200 OK", b"413 Too Large"))
        await asyncio.sleep(1)

    async with asked(impatient) as (client, server):
        for _ in range(2):
            response = await post(client, b"x" * (32 << 20))
            assert response.status == 413 and await response.content.read() == b"ok"
            response.release()
        assert server.connections == 2


async def test_a_connection_that_ended_while_idle() -> None:
    async with asked(always(OK, then_close=True)) as (client, server):
        for _ in range(3):
            assert await whole(client) == b"ok"
            await asyncio.sleep(0.02)
        assert server.connections == 3 and len(server.heads) == 3


async def test_a_connection_that_ends_with_the_next_question() -> None:
    """Its end and the question passed each other on the way: asked again, of a connection that was not used before."""

    async def once(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.question(reader)
        writer.write(OK)
        await server.question(reader)

    async with asked(once) as (client, server):
        assert [await whole(client), await whole(client)] == [b"ok", b"ok"]
        assert server.connections == 2 and len(server.heads) == 3


async def test_a_question_that_was_worked_at_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection was kept, but its end came late: who counts attempts is to know."""
    monkeypatch.setattr(http_client, "STALE_SECONDS", 0.05)

    async def late(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.question(reader)
        writer.write(OK)
        await server.question(reader)
        await asyncio.sleep(0.2)

    async with asked(late) as (client, server):
        assert await whole(client) == b"ok"
        with pytest.raises(NotConnected, match="closed"):
            await post(client)
        assert len(server.heads) == 2


async def test_no_question_is_asked_twice_of_new_connections() -> None:
    async def silent(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.question(reader)

    async with asked(silent) as (client, server):
        with pytest.raises(NotConnected, match="closed"):
            await post(client)
        assert len(server.heads) == 1


async def test_no_question_is_asked_again_that_was_answered_by_a_byte() -> None:
    async def breaking(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.question(reader)
        writer.write(OK)
        await server.question(reader)
        writer.write(b"H")

    async with asked(breaking) as (client, server):
        assert await whole(client) == b"ok"
        with pytest.raises(BrokenReply):
            await post(client)
        assert len(server.heads) == 2


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
    ],
    ids=["no HTTP", "two lengths", "length and chunks", "NUL", "a long header", "many headers", "cut"],
)
async def test_heads_that_are_none(reply: bytes) -> None:
    async with asked(always(reply, then_close=True)) as (client, _server):
        with pytest.raises(BrokenReply):
            await post(client)


@pytest.mark.parametrize(
    "reply",
    [OK[:-1], CHUNKED[:-30], CHUNKED[:-2], CHUNKED.replace(b"3;x=y", b"zz")],
    ids=["length", "in a chunk", "before the last line", "a chunk's size"],
)
async def test_bodies_that_break_off(reply: bytes) -> None:
    async with asked(always(reply[:-4], reply[-4:], then_close=True, between=0.01)) as (client, server):
        with pytest.raises(BrokenReply):
            await (await post(client)).content.read()
        assert server.connections == 1


async def test_a_body_until_the_end_that_is_reset() -> None:
    async def resetting(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.question(reader)
        writer.write(UNTIL_END)
        await asyncio.sleep(0.05)
        linger = (1).to_bytes(4, "little") + bytes(4)
        writer.get_extra_info("socket").setsockopt(1, 13, linger)  # SO_LINGER of 0 s: an end by RST
        writer.transport.abort()

    async with asked(resetting) as (client, _server):
        response = await post(client)
        with pytest.raises(BrokenReply):
            await response.content.read()


async def test_nobody_reads() -> None:
    """What is not read is not taken from the network either, and comes when it is."""
    taken = 0

    async def flooding(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await server.question(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
            taken += 1

    async with asked(flooding) as (client, _server):
        response = await post(client)
        await asyncio.sleep(0.3)
        held = taken
        assert held < 32
        assert len(await response.content.read()) == 64 << 20


@pytest.mark.parametrize("when", ["before the head", "in the body"])
async def test_a_client_that_leaves(when: str) -> None:
    async def slow(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.question(reader)
        if when == "in the body":
            writer.write(OK[:-1])
        await reader.readexactly(1)

    async with asked(slow) as (client, server):
        if when == "in the body":
            (await post(client)).close()
        else:
            task = asyncio.create_task(post(client))
            await asyncio.sleep(0.05)
            task.cancel()
        await asyncio.wait_for(server.left.acquire(), 2)


async def test_silence() -> None:
    async def silent(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.question(reader)
        await reader.readexactly(1)

    async with asked(silent) as (client, server):
        with pytest.raises(TimeoutError):
            await post(client, seconds=0.1)
        await asyncio.wait_for(server.left.acquire(), 2)


async def test_what_is_no_http_is_named_without_its_words() -> None:
    async with asked(always(b"220 mail.example.org ESMTP\r\n")) as (client, _server):
        with pytest.raises(BrokenReply) as raised:
            await post(client)
        assert str(raised.value) == "it sent what is no HTTP (Bad status line)"


async def test_nobody_listens() -> None:
    async with asked(always(OK)) as (_client, server):
        port = server.port
    client = HttpClient(f"http://127.0.0.1:{port}", {}, connect_timeout=5.0)
    with pytest.raises(NotConnected, match=f"127.0.0.1:{port}") as raised:
        await post(client)
    assert not isinstance(raised.value, ConnectTimedOut)


async def test_idle_connections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "KEEPALIVE_SECONDS", 0.1)
    async with asked(always(OK)) as (client, server):
        await asyncio.gather(*(whole(client) for _ in range(3)))
        assert server.connections == 3
        for _ in range(3):
            await asyncio.wait_for(server.left.acquire(), 2)
        assert await whole(client) == b"ok"


async def test_closing_ends_what_runs() -> None:
    async def slow(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.question(reader)
        writer.write(OK[:-1])
        await reader.readexactly(1)

    async with asked(slow) as (client, server):
        response = await post(client)
        await client.close()
        with pytest.raises(BrokenReply):
            await response.content.read()
        await asyncio.wait_for(server.left.acquire(), 2)


async def test_ipv6() -> None:
    try:
        async with asked(always(OK), "::1") as (client, server):
            assert await whole(client) == b"ok"
            assert b"\r\nHost: [::1]:%d\r\n" % server.port in server.heads[0]
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


async def test_credentials_in_the_address() -> None:
    async with asked(always(OK)) as (_client, server):
        client = HttpClient(f"http://me:secret@127.0.0.1:{server.port}", {}, connect_timeout=5.0)
        assert await whole(client) == b"ok"
        await client.close()
        assert b"\r\nAuthorization: Basic bWU6c2VjcmV0\r\n" in server.heads[0]
        assert b"Host: 127.0.0.1:%d\r\n" % server.port in server.heads[0]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """For localhost, with its key, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    made = tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *(
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-keyout",
                made,
                "-out",
                made,
            ),
        ],
        check=True,
        capture_output=True,
    )
    return made


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    if known:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with asked(always(OK), tls=tls, scheme="https", name="localhost") as (client, server):
        if known:
            assert [await whole(client), await whole(client)] == [b"ok", b"ok"]
            assert server.connections == 1
        else:
            with pytest.raises(NotConnected, match="certificate"):
                await post(client)
