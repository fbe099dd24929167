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
    """200 while new requests would be answered: the model is loaded, the engine lives, nobody stops us.

    Upstreams do not count: a sidecar taken out because one of them is down could not use the others, nor its cache.
    """
    context = request.app[CONTEXT]
    if context.edge.draining:
        return json_response({"status": "draining"}, status=503)
    upstreams = {
        upstream.name: "ready" if upstream.healthy else "left_alone" for upstream in context.upstreams
    }
    if context.local is None:
        return json_response({"status": "ready", "model": None, "upstreams": upstreams})
    backend = context.backend
    if backend.failure is not None:
        return json_response({"status": "failed", "reason": backend.failure.message}, status=503)
    if not backend.is_ready:
        return json_response({"status": "loading"}, status=503)
    body = {"status": "ready", "model": backend.name}
    return json_response({**body, "upstreams": upstreams} if upstreams else body)


async def metrics(request: web.Request) -> web.Response:
    content = request.app[CONTEXT].metrics.exposition()
    return web.Response(body=content, headers={"Content-Type": CONTENT_TYPE})
