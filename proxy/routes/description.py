"""GET /openapi.json."""

from aiohttp import web

from ..errors import JSON

OPENAPI = web.AppKey("openapi", bytes)


async def openapi(request: web.Request) -> web.Response:
    return web.Response(body=request.app[OPENAPI], content_type=JSON)
