"""A JSON response, encoded by orjson."""

import orjson
from aiohttp import web

from .errors import JSON


def json_response(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type=JSON)
