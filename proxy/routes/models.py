"""GET /v1/models and /v1/models/{id}: the local models, their adapters, routes, upstreams' models, and the embedding model.

Anthropic's clients are told of those that can talk, as their own API tells it.
"""

from aiohttp import web

from ..anthropic.models import anthropic_card, anthropic_page
from ..anthropic.to_chat import VERSION
from ..compat import FieldPolicy
from ..context import CONTEXT, Context
from ..edge import caller_of
from ..embeddings import EmbeddingBackend
from ..json_reply import json_response
from ..reply import DROPPED
from ..routing.plan import Ask
from ..routing.target import RemoteTarget
from ..tenants.rights import check_model, may_use


async def list_models(request: web.Request) -> web.Response:
    """Those that the caller may use."""
    context, tenant = request.app[CONTEXT], caller_of(request).account
    cards = [_card(context, name) for name in context.router.names]
    cards = [card for card in cards if may_use(tenant, (str(card["id"]), str(card["root"])))]
    if _from_anthropics_client(request):
        policy = FieldPolicy(context.settings.unsupported)
        response = json_response(anthropic_page(cards, request.query, policy))
        if policy.dropped:
            response.headers[DROPPED] = ",".join(policy.dropped)
        return response
    if context.embeddings is not None and may_use(tenant, (context.embeddings.name,)):
        cards.append(_embedding_card(context, context.embeddings))
    return json_response({"object": "list", "data": cards})


async def get_model(request: web.Request) -> web.Response:
    context, name = request.app[CONTEXT], request.match_info["id"]
    tenant = caller_of(request).account
    if context.embeddings is not None and name == context.embeddings.name:
        check_model(tenant, (name,))
        return json_response(_embedding_card(context, context.embeddings))
    card = _card(context, name)
    check_model(tenant, (name, str(card["root"])))
    return json_response(anthropic_card(card) if _from_anthropics_client(request) else card)


def _from_anthropics_client(request: web.Request) -> bool:
    """They send this header with every request, and OpenAI's never do."""
    return VERSION in request.headers


def _embedding_card(context: Context, embeddings: EmbeddingBackend) -> dict[str, object]:
    """It is not loaded for this, so that its length stays unsaid."""
    return {
        "id": embeddings.name,
        "object": "model",
        "created": context.started,
        "owned_by": "penstock",
        "root": embeddings.name,
        "max_model_len": None,
    }


def _card(context: Context, name: str) -> dict[str, object]:
    """`root`: what answers first, as things are now; of a learned route the large tier, whose promise it is."""
    plan = context.router.plan(name, Ask(0, 0))
    target = plan.targets[0] if plan.learned is None else plan.targets[-1]
    card = {"id": name, "object": "model", "created": context.started, "root": target.name}
    if isinstance(target, RemoteTarget):
        return {**card, "owned_by": target.upstream, "max_model_len": None}
    backend = context.backends.of(target.served)
    length = backend.engine.info.max_model_len if backend.is_ready else None
    return {**card, "owned_by": "penstock", "max_model_len": length}
