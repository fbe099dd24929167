"""A server on a real socket, on the production runner, around an engine that other servers may share."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from penstock.cache import CompletionCache
from penstock.config import Settings
from penstock.proxy.backend import Backend
from penstock.proxy.backends import Backends
from penstock.proxy.embeddings import EmbeddingBackend
from penstock.proxy.observe.record import RequestRecord
from penstock.proxy.server import (
    HttpServer,
    address_of,
    engine_embedder,
    listen,
    main_backend,
    near_hits,
    open_cache,
    open_tenants,
    tier_backend,
)
from penstock.proxy.tenants.tenants import Tenants, TenantStore
from penstock.scheduler import AsyncEmbedder, AsyncEngine


@dataclass(frozen=True)
class RunningServer:
    url: str
    backend: Backend
    http: HttpServer
    settings: Settings
    cache: CompletionCache | None
    store: TenantStore | None = None

    @property
    def engine(self) -> AsyncEngine:
        return self.backend.engine

    def client(self, api_key: str = "unused") -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=30)

    async def record(self, request_id: str, timeout: float = 5.0) -> RequestRecord:
        """Of a request that named a model, once it has ended."""
        async with asyncio.timeout(timeout):
            while (record := self.http.context.recent.find(request_id)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return record

    def token_id(self, text: str) -> int:
        (token_id,) = self.backend.tokenizer.encode(text)
        return token_id

    def spelling(self, letters: str = "abcdefgh ") -> dict[str, int]:
        """A logit bias under which the random model writes these letters only."""
        return {str(self.token_id(letter)): 100 for letter in letters}

    async def idle(self, timeout: float = 5.0) -> None:
        """Returns once the engine holds nothing; fails when it still does after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while self._holds_something():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def _holds_something(self) -> bool:
        stats = self.engine.stats
        return bool(stats.num_running or stats.num_waiting or stats.kv_blocks_used)

    async def busy(self, timeout: float = 10.0) -> None:
        """Returns once the engine computes something."""
        async with asyncio.timeout(timeout):
            while not self.engine.stats.num_running:  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@asynccontextmanager
async def running_server(
    engine_address: str,
    model: Path,
    *,
    embedder: AsyncEmbedder | None = None,
    tier_addresses: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[RunningServer]:
    """`settings` are those of `penstock serve`; caching is off unless `cache_path` is among them, and only static keys are
    known unless `tenants_path` is. `embedder`, of the
    setting `embedding_model`, stays the caller's. `tier_addresses`: of engines of the setting `tiers`.
    """
    given = {"model": str(model), "port": 0, "cache": "cache_path" in settings, **settings}
    resolved = Settings(**given)
    sock = listen(resolved)
    backend = main_backend(resolved, AsyncEngine.connect(engine_address))
    tiers = {name: AsyncEngine.connect(address) for name, address in (tier_addresses or {}).items()}
    backends = Backends(backend, [tier_backend(resolved, name, engine) for name, engine in tiers.items()])
    cache = open_cache(resolved)
    embeddings = None if embedder is None else EmbeddingBackend(resolved, embedder)
    by_engine = engine_embedder(resolved, backends)
    near = near_hits(resolved, cache, by_engine or embedder)
    store = open_tenants(resolved)
    tenants = Tenants(store, api_keys=resolved.api_keys)
    server = HttpServer(resolved, backends, cache, sock, embeddings, near, tenants)
    await server.start()
    await backends.start()
    if by_engine is not None:
        by_engine.check()
    if near is not None:
        await near.start()
    try:
        yield RunningServer(address_of(sock), backend, server, resolved, cache, store)
    finally:
        await backends.close()
        await server.close()
        if cache is not None:
            cache.close()
        if store is not None:
            store.close()
