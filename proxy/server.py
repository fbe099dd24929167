"""One HTTP process from start to end: listen at once, load behind it, serve, drain, stop."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ENGINE_EMBEDS, NO_MODEL, Settings
from ..errors import ConfigError, PenstockError
from ..models.location import find_model
from ..scheduler import AsyncEmbedder, AsyncEngine, EngineConfig
from ..tables import Tier
from .backend import Backend
from .backends import Backends
from .embeddings import EmbeddingBackend
from .engine_embedder import EngineEmbedder

if TYPE_CHECKING:
    from aiohttp import web

    from ..cache import CompletionCache
    from ..cache.embedder import Embedder
    from ..cache.near import NearHits
    from .context import Context
    from .tenants.tenants import Tenants, TenantStore

log = logging.getLogger(__name__)

BACKLOG = 1024
# How often a drain looks whether the last request has ended.
DRAIN_POLL_SECONDS = 0.02
# Time for cut requests to tell their clients so.
FAREWELL_SECONDS = 1.0


def engine_config(settings: Settings | Tier) -> EngineConfig:
    """The engine's share of the settings: the fields that bear the same name.

    Raises ModelLoadError when `model` is nothing that could be loaded.
    """
    find_model(settings.model)
    shared = set(EngineConfig.__struct_fields__) & set(settings.__struct_fields__)
    return EngineConfig(**{name: getattr(settings, name) for name in shared})


def tier_configs(settings: Settings) -> dict[str, EngineConfig]:
    """The same of each tier, by its name. Raises ConfigError and ModelLoadError that say which."""
    configs = {}
    for name, tier in settings.tiers.items():
        try:
            configs[name] = engine_config(tier)
        except PenstockError as error:
            error.message = f"tiers.{name}: {error.message}"
            raise
    return configs


def engines_of(settings: Settings) -> tuple[AsyncEngine | None, dict[str, AsyncEngine]]:
    """That of the main model, None for upstreams only, and those of the tiers; not started. Raises as `tier_configs`."""
    main = None if settings.model == NO_MODEL else AsyncEngine(engine_config(settings))
    return main, {name: AsyncEngine(config) for name, config in tier_configs(settings).items()}


def listen(settings: Settings, *, shared: bool = False) -> socket.socket:
    """A bound socket, listening unless `shared` (then every worker binds and listens for itself,
    SO_REUSEPORT).

    Raises ConfigError when the address cannot be had.
    """
    return _bound(settings.host, settings.port, "", shared=shared)


def listen_for_admin(settings: Settings) -> socket.socket | None:
    """The same, for those who manage tenants; None when that is off."""
    if settings.admin_port is None:
        return None
    return _bound(settings.admin_host, settings.admin_port, "admin_", shared=False)


def _bound(host: str, port: int, prefix: str, *, shared: bool) -> socket.socket:
    """`prefix`: of the settings' names."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"{prefix}host is {host!r}, which is no address here: {error.strerror}.", param=f"{prefix}host"
        ) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if not shared:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"{host} port {port} cannot be listened on ({error.strerror}); "
            f"choose another --{prefix.replace('_', '-')}port.",
            param=f"{prefix}port",
        ) from error
    return sock


def address_of(sock: socket.socket) -> str:
    """The URL under which a listening socket is reached from this machine."""
    host, port = sock.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


class HttpServer:
    """The HTTP side around models and a cache that the caller starts and closes; made within a running event loop.

    Args:
        sock: bound; `listen` makes it.
        tenants: None knows the settings' static keys only.
        shared_metrics: folder in which several workers keep their figures together.
    """

    def __init__(
        self,
        settings: Settings,
        backends: Backends,
        cache: "CompletionCache | None",
        sock: socket.socket,
        embeddings: EmbeddingBackend | None = None,
        near: "NearHits | None" = None,
        tenants: "Tenants | None" = None,
        *,
        shared_metrics: Path | None = None,
    ) -> None:
        # Imported late, so that an engine started just before loads meanwhile.
        from .app import create_app
        from .context import CONTEXT
        from .runner import production_runner

        app = create_app(settings, backends, cache, embeddings, near, tenants, shared_metrics=shared_metrics)
        self.context = app[CONTEXT]
        self._edge = app[CONTEXT].edge
        self._runner = production_runner(app, self.context.recorder, write_timeout=settings.write_timeout)
        self._sock = sock
        self._site: web.SockSite | None = None

    async def start(self) -> None:
        from aiohttp import web

        await self._runner.setup()
        self._site = web.SockSite(self._runner, self._sock, backlog=BACKLOG)
        await self._site.start()

    async def drain(self, timeout: float, hurry: asyncio.Event) -> None:
        """Takes no new work and waits for what runs: until it is done, `timeout` seconds are over, or `hurry`
        is set.
        """
        self._edge.draining = True
        if self._site is not None:
            await self._site.stop()
            self._site = None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._edge.in_flight and loop.time() < deadline and not hurry.is_set():  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def close(self) -> None:
        """Cuts what still runs, and waits for what is to be kept, and told, of the rest."""
        await self._runner.cleanup()
        await self.context.drifts.close()
        await self.context.relay.close()
        await self.context.upstreams.close()
        for local in self.context.locals.values():
            await local.service.close()
        await self.context.journal.close()
        self.context.metrics.close()


async def serve(
    settings: Settings,
    engine: AsyncEngine | None,
    sock: socket.socket,
    embedder: AsyncEmbedder | None = None,
    *,
    tiers: Mapping[str, AsyncEngine] = {},
    on_ready: Callable[[Backends], None],
    on_serving: Callable[["Context"], Coroutine[Any, Any, None]] | None = None,
    manages: bool = True,
    shared_metrics: Path | None = None,
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
) -> None:
    """Serves until one of `signals`, then drains for up to `drain_timeout` seconds; a second one ends that at
    once.

    Args:
        engine: None for upstreams only.
        tiers: engines of the settings' tiers.
        on_serving: runs beside it, from when the address is listened on; for what changes a running server.
        manages: of several processes, the one that also listens on `admin_port`, if that is set.

    Raises ModelLoadError when the model cannot be served, ConfigError when the cache or the tenants cannot be opened.
    """
    from .tenants.admin import AdminServer
    from .tenants.tenants import Tenants

    stop, hurry = _on_signals(signals)
    backend = None if engine is None else main_backend(settings, engine)
    backends = Backends(backend, [tier_backend(settings, name, engine) for name, engine in tiers.items()])
    embeddings = None if embedder is None else EmbeddingBackend(settings, embedder)
    loading = asyncio.create_task(backends.start())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.sleep(0)  # the engine's process starts now, and loads while the HTTP side does
    cache = store = admin = server = starting = None
    beside: asyncio.Task[None] | None = None
    try:
        cache = open_cache(settings)
        store = open_tenants(settings)
        by_engine = engine_embedder(settings, backends)
        near = near_hits(settings, cache, by_engine or embedder)
        tenants = None if store is None else Tenants(store, api_keys=settings.api_keys)
        server = HttpServer(
            settings, backends, cache, sock, embeddings, near, tenants, shared_metrics=shared_metrics
        )
        await server.start()
        admin_sock = listen_for_admin(settings) if manages and store is not None else None
        if store is not None and admin_sock is not None:
            admin = AdminServer(store, admin_sock, key=settings.admin_key, context=server.context)
            await admin.start()
            log.info("tenants are managed, and the dashboard is, at %s", address_of(admin_sock))
        if on_serving is not None:
            beside = asyncio.create_task(on_serving(server.context))
        await asyncio.wait({loading, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            loading.result()
            if by_engine is not None:
                by_engine.check()
            on_ready(backends)
            if near is not None:
                starting = asyncio.create_task(near.start())  # after the model, which is waited for
        await stopped
        await server.drain(server.context.settings.drain_timeout, hurry)
    finally:
        tasks = {task for task in (loading, stopped, starting, beside) if task is not None}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        # The engine goes first: streams that still run end with an error event that says why, not with a cut.
        await backends.close()
        if server is not None:
            await server.drain(FAREWELL_SECONDS, hurry)
            await server.close()
        if embedder is not None:
            await embedder.shutdown()
        if admin is not None:
            await admin.close()
        if store is not None:
            await asyncio.to_thread(store.close)
        if cache is not None:
            await asyncio.to_thread(cache.close)


def main_backend(settings: Settings, engine: AsyncEngine) -> Backend:
    """Around the engine of `settings.model`. Raises ConfigError when an alias names what is not served."""
    return Backend(
        settings.model,
        engine,
        served_name=settings.served_model_name,
        aliases={name: of for name, of in settings.model_aliases.items() if of not in settings.tiers},
        adapters=settings.adapters,
    )


def tier_backend(settings: Settings, name: str, engine: AsyncEngine) -> Backend:
    """The same of a tier."""
    aliases = {alias: of for alias, of in settings.model_aliases.items() if of == name}
    return Backend(settings.tiers[name].model, engine, served_name=name, aliases=aliases)


def open_cache(settings: Settings) -> "CompletionCache | None":
    """None when caching is off. Raises ConfigError when its folder cannot be used."""
    if not settings.cache:
        return None
    from ..cache import CompletionCache

    assert settings.cache_path is not None, "load_settings fills it in"
    return CompletionCache(settings.cache_path, max_bytes=settings.cache_max_bytes, ttl=settings.cache_ttl)


def open_tenants(settings: Settings) -> "TenantStore | None":
    """None when only static keys are known. Raises ConfigError when its folder cannot be used."""
    if not settings.tenants or settings.tenants_path is None:
        return None
    from .tenants.tenants import TenantStore

    return TenantStore(settings.tenants_path)


def engine_embedder(settings: Settings, backends: Backends) -> EngineEmbedder | None:
    """None where another model embeds, or nothing does."""
    return EngineEmbedder(backends.main) if settings.embedding_model == ENGINE_EMBEDS else None


def near_hits(
    settings: Settings, cache: "CompletionCache | None", embedder: "Embedder | None"
) -> "NearHits | None":
    """None when only exact repeats are to be found, or nothing embeds; to be started."""
    # Upstreams take no drafts.
    wanted = ("trusted",) if settings.model == NO_MODEL else ("draft", "trusted")
    if cache is None or embedder is None or settings.cache_mode not in wanted:
        return None
    from ..cache.near import NearHits

    return NearHits(
        cache,
        embedder,
        mode=settings.cache_mode,
        draft_similarity=settings.cache_similarity,
        max_error_rate=settings.cache_max_error_rate,
        guards=settings.cache_guards,
        same=settings.cache_same_answer,
    )


def _on_signals(signals: tuple[signal.Signals, ...]) -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first signal, and by the second."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    return stop, hurry
