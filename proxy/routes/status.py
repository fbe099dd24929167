"""GET /health/live, /health/ready (also /health) and /metrics: for supervisors, load balancers and
Prometheus.
"""

from aiohttp import web

from ..context import CONTEXT
from ..json_reply import json_response
from ..metrics import CONTENT_TYPE


async def live(_request: web.Request) -> web.Response:
    """This process answers.

    A dead engine is started anew by us, so that it is no reason to kill the server.
    """
    return json_response({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """200 while new requests would be answered: all models are loaded, the main one's engine lives, nobody stops us.

    Upstreams do not count, nor tiers that were loaded once: a sidecar taken out because one of them is down could not use
    the others, nor its cache.
    """
    context = request.app[CONTEXT]
    if context.edge.draining:
        return json_response({"status": "draining"}, status=503)
    upstreams = {
        upstream.name: "ready" if upstream.healthy else "left_alone" for upstream in context.upstreams
    }
    if not context.backends:
        return json_response({"status": "ready", "model": None, "upstreams": upstreams})
    main, *tiers = context.backends
    for backend in context.backends:
        if backend.failure is not None:
            return json_response({"status": "failed", "reason": backend.failure.message}, status=503)
    body: dict[str, object] = {"status": "ready", "model": main.name}
    if not (main.is_ready and all(tier.is_loaded for tier in tiers)):
        body = {"status": "loading"}
    if tiers:
        body["tiers"] = {tier.name: "ready" if tier.is_ready else "loading" for tier in tiers}
    if upstreams:
        body["upstreams"] = upstreams
    return json_response(body, status=503 if body["status"] == "loading" else 200)


async def metrics(request: web.Request) -> web.Response:
    content = request.app[CONTEXT].metrics.exposition()
    return web.Response(body=content, headers={"Content-Type": CONTENT_TYPE})
