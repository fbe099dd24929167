"""Questions to one upstream over HTTP/1.1, on connections that are kept."""

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import Mapping

from aiohappyeyeballs import start_connection
from yarl import URL

from .connection import Connection, ConnectTimedOut, NotConnected, Response

KEEPALIVE_SECONDS = 60.0
# A kept connection that is lost within so long of a question was closed before it.
STALE_SECONDS = 1.0
# After so long the next of a name's addresses is tried beside the first (RFC 8305).
NEXT_ADDRESS_SECONDS = 0.25


class HttpClient:
    """Made within a running event loop; to be closed.

    Args:
        base_url: what comes before the paths.
        headers: of every request.
        connect_timeout: seconds, with finding the address and with TLS.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], *, connect_timeout: float) -> None:
        self._url = URL(base_url.rstrip("/"))
        self._headers = headers
        self._connect_timeout = connect_timeout
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLContext | None = None
        if self._url.scheme == "https":
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(("http/1.1",))
        self._names = frozenset(name.lower() for name in headers)
        self._heads: dict[tuple[str, frozenset[str]], str] = {}
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # and since when; the latest last
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def post(self, path: str, headers: Mapping[str, str], body: bytes, *, seconds: float) -> Response:
        """A reply whose head has come. Raises HttpError, and TimeoutError after `seconds`."""
        due = self._loop.time() + seconds
        head = self._head(path, headers, len(body))
        if self._idle:
            connection, _ = self._idle.popitem()
            asked = self._loop.time()
            try:
                return await self._ask(connection, head, body, due)
            except NotConnected:
                # At once: it was closed while it was idle, and who answers not a byte then has read none. Later the question
                # may have been worked at: whether it is asked again is for those to say who count attempts.
                if self._loop.time() - asked > STALE_SECONDS:
                    raise
        connection = await self._connect(due - self._loop.time())
        return await self._ask(connection, head, body, due)

    async def close(self) -> None:
        """Cuts what still runs."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # in which the transports say goodbye

    async def _ask(self, connection: Connection, head: bytes, body: bytes, due: float) -> Response:
        patience = connection.patience
        patience.seconds = due - self._loop.time()
        with patience:
            return await connection.ask(head, body)

    async def _connect(self, seconds: float) -> Connection:
        limit = min(self._connect_timeout, seconds)
        try:
            async with asyncio.timeout(limit):
                return await self._connected()
        except TimeoutError:
            if seconds < self._connect_timeout:
                raise
            raise ConnectTimedOut(f"no connection within {limit:g} seconds") from None
        except OSError as error:  # TLS has errors of its own, which are some of these
            where = self._url.host_port_subcomponent
            raise NotConnected(f"{where} cannot be connected to ({error.strerror or error})") from error

    async def _connected(self) -> Connection:
        host, port = self._url.raw_host or "", self._url.port or 0
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        sock = await start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, loop=self._loop)
        connection = Connection(self._loop, idle=self._rest, lost=self._forget)
        self._connections.add(connection)
        try:
            await self._loop.create_connection(
                lambda: connection,
                sock=sock,
                ssl=self._tls,
                server_hostname=None if self._tls is None else host.rstrip("."),
            )
        except BaseException:
            sock.close()
            self._forget(connection)
            raise
        return connection

    def _rest(self, connection: Connection) -> None:
        if self._is_closed:  # by a request that had begun before
            connection.abort()
            return
        self._idle[connection] = self._loop.time()
        if self._sweep is None:
            self._sweep = self._loop.call_later(KEEPALIVE_SECONDS, self._close_idle)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._idle.pop(connection, None)

    def _close_idle(self) -> None:
        """Those that nobody has used for so long."""
        self._sweep = None
        now = self._loop.time()
        for connection, since in list(self._idle.items()):
            if now - since < KEEPALIVE_SECONDS:
                self._sweep = self._loop.call_at(since + KEEPALIVE_SECONDS, self._close_idle)
                return
            del self._idle[connection]
            connection.abort()

    def _head(self, path: str, headers: Mapping[str, str], length: int) -> bytes:
        """A request's own header takes the place of the usual one. Raises ValueError for a header that would be two."""
        replaced = self._names.intersection([name.lower() for name in headers])
        usual = self._heads.get((path, replaced))
        if usual is None:
            usual = self._heads[path, replaced] = self._usual_head(path, replaced)
        own = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if own.count("\n") != len(headers) or own.count("\r") != len(headers):
            raise ValueError("a header has a line end in it")
        # Bytes that are no UTF-8 have come as lone surrogates, and go on as they were.
        return f"{usual}{own}Content-Length: {length}\r\n\r\n".encode("utf-8", "surrogateescape")

    def _usual_head(self, path: str, but: frozenset[str]) -> str:
        url = URL(str(self._url) + path)
        host = self._url.host_port_subcomponent
        lines = {
            "Host": host,
            **{name: value for name, value in self._headers.items() if name.lower() not in but},
        }
        if self._url.user is not None:
            credentials = f"{self._url.user}:{self._url.password or ''}".encode()
            lines.setdefault("Authorization", f"Basic {b64encode(credentials).decode()}")
        return f"POST {url.raw_path_qs} HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )
