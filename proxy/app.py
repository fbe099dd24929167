"""The application: its parts wired together."""

from pathlib import Path

from aiohttp import web

from ..cache import CompletionCache
from ..cache.near import NearHits
from ..config import Settings
from .backends import Backends
from .cascade.drift import Drifts
from .context import CONTEXT, Context, Local
from .edge import Edge
from .embeddings import EmbeddingBackend
from .endpoints import ENDPOINTS
from .keeping import Keeping
from .local_account import LocalAccount, hour_price
from .metrics import Metrics
from .observe.journal import Journal
from .observe.recent import Recent
from .observe.recorder import Recorder
from .openapi import document, encoded
from .routes.dashboard import DASHBOARD, Dashboard
from .routes.description import OPENAPI
from .routing.state import router_of
from .service import CompletionService
from .tenants.tenants import Tenants
from .upstreams.near_answers import NearAnswers
from .upstreams.pool import UpstreamPool
from .upstreams.relay import Relay
from .upstreams.shadows import Shadows


def create_app(
    settings: Settings,
    backends: Backends,
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
        backends: the tiers among them are called as the settings call them.
        tenants: None knows the settings' static keys only.
        shared_metrics: folder in which several workers keep their figures together.
    """
    figures = Metrics(backends, cache, shared=shared_metrics)
    tenants = tenants or Tenants(api_keys=settings.api_keys)
    journal = Journal(settings, tenants.totals)
    recent = Recent()
    recorder = Recorder(figures, recent, *journal.sinks, spans=journal.spans, keeps_text=settings.log_prompts)
    edge = Edge(recorder, tenants)
    drifts = Drifts()
    pool = UpstreamPool(settings.upstreams, figures.upstream)
    keeping = Keeping.of(settings)
    locals_, accounts = {}, {}
    for one in backends:
        account = accounts[one.name] = LocalAccount(one, hour_price(settings, one.name))
        service = CompletionService(
            one,
            cache,
            near,
            figures,
            account,
            keeping=keeping,
            speculation=settings.tiers.get(one.name, settings).speculation,
        )
        locals_[one.name] = Local(one, service)
    near_answers = None
    if near is not None and near.mode == "trusted":  # upstreams take no drafts
        near_answers = NearAnswers(near, Shadows(settings.cache_shadow_share))
    app = web.Application(middlewares=[edge.middleware], client_max_size=settings.max_body_bytes)
    app[CONTEXT] = Context(
        settings=settings,
        router=router_of(settings, backends, pool, accounts, drifts),
        backends=backends,
        locals=locals_,
        upstreams=pool,
        relay=Relay(pool, cache, near_answers, figures, keeping),
        cache=cache,
        metrics=figures,
        edge=edge,
        recorder=recorder,
        drifts=drifts,
        journal=journal,
        recent=recent,
        tenants=tenants,
        embeddings=embeddings,
    )
    app.add_routes([web.route(each.method, each.path, each.handler) for each in ENDPOINTS])
    app[OPENAPI] = encoded(document(ENDPOINTS))
    app[DASHBOARD] = Dashboard(app[CONTEXT], for_operator=False)
    return app
