"""GET /v1/models and /v1/models/{id}: the one model, its adapters, and the other names they answer to."""

from aiohttp import web

from ..context import CONTEXT, Context
from ..json_reply import json_response


async def list_models(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    return json_response({"object": "list", "data": [_card(context, name) for name in context.backend.names]})


async def get_model(request: web.Request) -> web.Response:
    context, name = request.app[CONTEXT], request.match_info["id"]
    context.backend.find(name)
    return json_response(_card(context, name))


def _card(context: Context, name: str) -> dict[str, object]:
    backend = context.backend
    return {
        "id": name,
        "object": "model",
        "created": context.started,
        "owned_by": "penstock",
        "root": backend.find(name).name,
        "max_model_len": backend.engine.info.max_model_len if backend.is_ready else None,
    }
