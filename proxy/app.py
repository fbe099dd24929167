"""The application: its parts wired together."""

from pathlib import Path

from aiohttp import web

from ..cache import CompletionCache
from ..cache.near import NearHits
from ..config import Settings
from .backend import Backend
from .context import CONTEXT, Context, Local
from .edge import Edge, name_response
from .embeddings import EmbeddingBackend
from .endpoints import ENDPOINTS
from .keeping import Keeping
from .local_account import LocalAccount
from .metrics import Metrics
from .observe.journal import Journal
from .observe.recorder import Recorder
from .openapi import document, encoded
from .routes.description import OPENAPI
from .routing.state import router_of
from .service import CompletionService
from .tenants.tenants import Tenants
from .upstreams.pool import UpstreamPool
from .upstreams.relay import Relay


def create_app(
    settings: Settings,
    backend: Backend | None,
    cache: CompletionCache | None,
    embeddings: EmbeddingBackend | None = None,
    near: NearHits | None = None,
    tenants: Tenants | None = None,
    *,
    shared_metrics: Path | None = None,
) -> web.Application:
    """An application around parts that the caller starts and closes; its upstreams, too (`Context.upstreams`). To be called
    within a running event loop.

    Args:
        tenants: None knows the settings' static keys only.
        shared_metrics: folder in which several workers keep their figures together.
    """
    figures = Metrics(backend, cache, shared=shared_metrics)
    tenants = tenants or Tenants(api_keys=settings.api_keys)
    journal = Journal(settings)
    recorder = Recorder(figures, *journal.sinks, spans=journal.spans, keeps_text=settings.log_prompts)
    edge = Edge(recorder, tenants)
    pool = UpstreamPool(settings.upstreams, figures.upstream)
    keeping = Keeping.of(settings)
    local = None
    if backend is not None:
        service = CompletionService(
            backend,
            cache,
            near,
            figures,
            LocalAccount(backend, settings.local_hour_price),
            keeping=keeping,
            speculation=settings.speculation,
        )
        local = Local(backend, service)
    app = web.Application(middlewares=[edge.middleware], client_max_size=settings.max_body_bytes)
    app[CONTEXT] = Context(
        settings=settings,
        router=router_of(settings, backend, pool),
        local=local,
        upstreams=pool,
        relay=Relay(pool, cache, keeping),
        cache=cache,
        metrics=figures,
        edge=edge,
        recorder=recorder,
        journal=journal,
        tenants=tenants,
        embeddings=embeddings,
    )
    app.on_response_prepare.append(name_response)
    app.add_routes([web.route(each.method, each.path, each.handler) for each in ENDPOINTS])
    app[OPENAPI] = encoded(document(ENDPOINTS))
    return app
