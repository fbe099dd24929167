"""The application: its parts wired together, and the table of routes."""

from pathlib import Path

from aiohttp import web

from ..cache import CompletionCache
from ..cache.near import NearHits
from ..config import Settings
from .backend import Backend
from .context import CONTEXT, Context, Local
from .edge import Edge, name_response
from .embeddings import EmbeddingBackend
from .local_account import LocalAccount
from .metrics import Metrics
from .observe.journal import Journal
from .observe.recorder import Recorder
from .routes.chat import chat_completions
from .routes.completions import completions
from .routes.embeddings import create_embeddings
from .routes.messages import count_tokens, messages
from .routes.models import get_model, list_models
from .routes.responses import count_input_tokens, create_response, not_stored
from .routes.status import live, metrics, ready
from .routes.tokens import detokenize, tokenize
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
    local = None
    if backend is not None:
        service = CompletionService(
            backend,
            cache,
            near,
            figures,
            LocalAccount(backend, settings.local_hour_price),
            no_store=settings.cache_no_store_patterns,
            speculation=settings.speculation,
        )
        local = Local(backend, service)
    app = web.Application(middlewares=[edge.middleware], client_max_size=settings.max_body_bytes)
    app[CONTEXT] = Context(
        settings=settings,
        router=router_of(settings, backend, pool),
        local=local,
        upstreams=pool,
        relay=Relay(pool, cache, no_store=settings.cache_no_store_patterns),
        cache=cache,
        metrics=figures,
        edge=edge,
        recorder=recorder,
        journal=journal,
        tenants=tenants,
        embeddings=embeddings,
    )
    app.on_response_prepare.append(name_response)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat_completions),
            web.post("/v1/completions", completions),
            web.post("/v1/messages", messages),
            web.post("/v1/messages/count_tokens", count_tokens),
            web.post("/v1/embeddings", create_embeddings),
            web.post("/v1/responses", create_response),
            web.post("/v1/responses/input_tokens", count_input_tokens),
            web.get("/v1/responses/{id}", not_stored),
            web.delete("/v1/responses/{id}", not_stored),
            web.post("/v1/responses/{id}/cancel", not_stored),
            web.get("/v1/responses/{id}/input_items", not_stored),
            web.get("/v1/models", list_models),
            web.get("/v1/models/{id:.+}", get_model),
            web.post("/tokenize", tokenize),
            web.post("/detokenize", detokenize),
            web.get("/health", ready),
            web.get("/health/ready", ready),
            web.get("/health/live", live),
            web.get("/metrics", metrics),
        ]
    )
    return app
