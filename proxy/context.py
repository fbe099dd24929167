"""What handlers share: the parts of one running server."""

import time
from collections.abc import Mapping

import msgspec
from aiohttp import web

from ..cache import CompletionCache
from ..config import Settings
from .backend import Backend, Served
from .backends import Backends
from .cascade.drift import Drifts
from .edge import Edge
from .embeddings import EmbeddingBackend
from .metrics import Metrics
from .observe.journal import Journal
from .observe.recent import Recent
from .observe.recorder import Recorder
from .routing.router import Router
from .service import CompletionService
from .tenants.tenants import Tenants
from .upstreams.pool import UpstreamPool
from .upstreams.relay import Relay


class Local(msgspec.Struct, frozen=True):
    """A model that is served here."""

    backend: Backend
    service: CompletionService


class Context(msgspec.Struct, kw_only=True):
    """`settings`, `router`: replaced together when the settings file is read anew. `locals`: the models of `backends`, by
    their own names."""

    settings: Settings
    router: Router
    backends: Backends
    locals: Mapping[str, Local]
    upstreams: UpstreamPool
    relay: Relay
    cache: CompletionCache | None
    metrics: Metrics
    edge: Edge
    recorder: Recorder
    journal: Journal
    recent: Recent
    tenants: Tenants
    drifts: Drifts
    embeddings: EmbeddingBackend | None = None
    started: int = msgspec.field(default_factory=lambda: int(time.time()))

    @property
    def backend(self) -> Backend:
        """Of the main model. Raises ModelNotFoundError where only upstreams are served."""
        return self.backends.main

    def local_of(self, served: Served) -> Local:
        return self.locals[self.backends.of(served).name]

    def system_fingerprint(self, served: Served) -> str:
        """Changes whenever a seeded answer could; the model must be ready."""
        info = self.backends.of(served).engine.info
        adapter = "" if served.adapter is None else f"_{info.adapters[served.adapter][:12]}"
        return f"fp_{info.fingerprint[:12]}{adapter}"

    def reply_head(self, job_id: str, served: Served) -> dict[str, object]:
        """The fields that every chunk and body of one reply begins with; the model must be ready."""
        return {
            "id": job_id,
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": self.system_fingerprint(served),
        }


CONTEXT = web.AppKey("context", Context)
