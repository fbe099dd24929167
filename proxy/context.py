"""What handlers share: the parts of one running server."""

import time

import msgspec
from aiohttp import web

from ..config import Settings
from .backend import Backend, Served
from .edge import Edge
from .embeddings import EmbeddingBackend
from .metrics import Metrics
from .service import CompletionService


class Context(msgspec.Struct, frozen=True, kw_only=True):
    settings: Settings
    backend: Backend
    service: CompletionService
    metrics: Metrics
    edge: Edge
    embeddings: EmbeddingBackend | None = None
    started: int = msgspec.field(default_factory=lambda: int(time.time()))

    def system_fingerprint(self, served: Served) -> str:
        """Changes whenever a seeded answer could; the model must be ready."""
        info = self.backend.engine.info
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
