"""Penstock before upstreams: on a real socket and the production runner, without an engine or with one that others share."""

import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from penstock.cache import CompletionCache
from penstock.config import Settings
from penstock.proxy.backend import Backend
from penstock.proxy.backends import Backends
from penstock.proxy.server import HttpServer, address_of, listen, near_hits, open_cache
from penstock.proxy.upstreams.upstream import Upstream as LiveUpstream
from penstock.scheduler import AsyncEmbedder, AsyncEngine
from penstock.tables import Route, Secret, Upstream

UPSTREAM_KEY = "sk-of-the-upstream"
CLIENT_KEY = "sk-of-the-client"
CHAT_PATH = "/v1/chat/completions"


def chat(model: str = "up/m", **fields: Any) -> dict[str, Any]:
    """A request whose answer is kept: temperature 0."""
    return {"model": model, "temperature": 0, "messages": [{"role": "user", "content": "hi"}], **fields}


@dataclass
class Gateway:
    url: str
    http: HttpServer
    cache: CompletionCache | None
    session: aiohttp.ClientSession
    backend: Backend | None

    @property
    def engine(self) -> AsyncEngine:
        assert self.backend is not None
        return self.backend.engine

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=CLIENT_KEY, max_retries=0, timeout=30)

    def live(self, name: str = "up") -> LiveUpstream:
        return self.http.context.upstreams[name]

    @property
    def kept(self) -> int:
        """Completions in the cache."""
        assert self.cache is not None
        self.cache.flush()
        return self.cache.stats().entries

    async def post(self, fields: Mapping[str, Any] | bytes, path: str = CHAT_PATH, **headers: str) -> "Reply":
        """The whole reply; `cut` tells that the body broke off below HTTP."""
        async with self.open(fields, path, **headers) as response:
            parts, cut = [], False
            try:
                while data := await response.content.readany():
                    parts.append(data)
            except aiohttp.ClientError:
                cut = True
            return Reply(
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                b"".join(parts),
                cut,
            )

    def open(
        self, fields: Mapping[str, Any] | bytes, path: str = CHAT_PATH, **headers: str
    ) -> "aiohttp.client._RequestContextManager":
        given = {"Authorization": f"Bearer {CLIENT_KEY}", **headers}
        if isinstance(fields, bytes):
            return self.session.post(self.url + path, data=fields, headers=given)
        return self.session.post(self.url + path, json=fields, headers=given)


@dataclass(frozen=True)
class Reply:
    """`headers` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False

    @property
    def events(self) -> list[bytes]:
        """Data of a stream's events."""
        return [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]


@asynccontextmanager
async def running_gateway(
    upstreams: Mapping[str, Upstream],
    *,
    routes: Mapping[str, Route] | None = None,
    cache_path: Path | None = None,
    engine_address: str | None = None,
    model: Path | None = None,
    embedder: AsyncEmbedder | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """`engine_address` and `model`, both or neither: an engine beside the upstreams. `embedder`: stays the caller's.
    `settings`: as of `penstock serve`.
    """
    resolved = Settings(
        model="none" if model is None else str(model),
        port=0,
        upstreams=dict(upstreams),
        routes=dict(routes or {}),
        cache=cache_path is not None,
        cache_path=cache_path,
        **settings,
    )
    sock = listen(resolved)
    backend = None
    if engine_address is not None:
        backend = Backend(
            resolved.model, AsyncEngine.connect(engine_address), served_name=None, aliases={}, adapters={}
        )
    cache = open_cache(resolved)
    near = near_hits(resolved, cache, embedder)
    server = HttpServer(resolved, Backends(backend), cache, sock, near=near)
    await server.start()
    if near is not None:
        await near.start()
    if backend is not None:
        await backend.start()
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30), read_bufsize=1 << 16
    )
    try:
        yield Gateway(address_of(sock), server, cache, session, backend)
    finally:
        await session.close()
        if backend is not None:
            await backend.close()
        await server.close()
        if cache is not None:
            cache.close()


def settings_of(url: str, **changes: Any) -> Upstream:
    """Of an upstream that takes any model; patient enough for a busy machine, but not for longer than a test may take."""
    given = {
        "base_url": url,
        "models": ["*"],
        "api_key": Secret(UPSTREAM_KEY),
        "retries": 0,
        "breaker_failures": 1000,
    }
    return Upstream(**given | changes)


def stalled_request(gateway: Gateway, fields: dict[str, object]) -> socket.socket:
    """A client that asks and never reads."""
    host, port = gateway.url.removeprefix("http://").split(":")
    body = json.dumps(fields).encode()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    sock.sendall(f"{head}Authorization: Bearer {CLIENT_KEY}\r\n\r\n".encode() + body)
    return sock
