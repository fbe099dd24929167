"""POST /v1/embeddings.

Texts longer than the model reads are cut at their end; the header `x-penstock-truncated` names them by their index.
"""

import base64
from contextlib import suppress

import orjson
from aiohttp import web

from ...errors import InvalidRequestError, ModelNotFoundError
from ...scheduler.async_embedder import AsyncEmbedder, EncodedText
from ..answering import Asked, Dialect, Ready, Started, answer, usual_plan
from ..backend import Served
from ..compat import FieldPolicy
from ..errors import JSON
from ..openai_types import EmbeddingsRequest, convert
from ..relayed import relay
from ..reply import model_headers
from ..routing.plan import Ask, Plan
from ..routing.target import LocalTarget, RemoteTarget, Target
from ..tenants.spend import Spend
from ..upstreams.openai_apis import EMBEDDINGS_API

# OpenAI's own limits of one request.
MAX_INPUTS = 2048
MAX_TOKENS = 300_000
TRUNCATED = "x-penstock-truncated"


async def create_embeddings(request: web.Request) -> web.StreamResponse:
    return await answer(request, EMBEDDINGS)


def _plan(given: Asked, ask: Ask) -> Plan:
    """The embedding model of this server, or else an upstream's; models that generate are none."""
    backend = given.context.embeddings
    if backend is not None and backend.takes(given.model):
        return Plan((LocalTarget(Served(backend.name)),), "only")
    remote: tuple[Target, ...] = ()
    with suppress(ModelNotFoundError):
        plan = usual_plan(given, ask)
        remote = tuple(target for target in plan.targets if isinstance(target, RemoteTarget))
    if remote:
        return Plan(remote, plan.reason)
    if backend is None:
        raise ModelNotFoundError(
            "No embedding model is served: install penstock[semantic], or start the server with --embedding-model.",
            param="model",
        )
    raise ModelNotFoundError(
        f"The embedding model {given.model!r} does not exist here; served is: {backend.name}.", param="model"
    )


async def _local(given: Asked, _served: Served) -> Started:
    context = given.context
    policy = FieldPolicy(context.settings.unsupported)
    asked = convert(policy.embeddings(given.fields), EmbeddingsRequest)
    backend = context.embeddings
    assert backend is not None, "it is in the plan"
    info = await backend.embedder.start()
    if asked.dimensions not in (None, info.dims):
        policy.refuse_or_drop(
            "dimensions",
            f"dimensions is {asked.dimensions}; vectors of {backend.name} have {info.dims}, and are not shortened.",
        )
    texts = await _encoded(asked.input, backend.embedder)
    tokens = sum(len(text.token_ids) for text in texts)
    if tokens > MAX_TOKENS:
        raise InvalidRequestError(
            f"input has {tokens} tokens; at most {MAX_TOKENS} fit one request. Send several.", param="input"
        )
    with given.admission.call(backend.name) as call:
        given.record.hand_over()
        vectors = await backend.embedder.embed_token_ids([text.token_ids for text in texts])
        given.record.piece_came()
        given.record.prompt_tokens = tokens
        call.settle(
            Spend(model=backend.name, prompt_tokens=tokens, cached_tokens=0, completion_tokens=0, cost=0.0)
        )
    as_text = asked.encoding_format == "base64"
    body = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.tobytes()).decode() if as_text else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "model": backend.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    headers = model_headers(backend.name, policy.dropped)
    if cut := [str(index) for index, text in enumerate(texts) if text.is_cut]:
        headers[TRUNCATED] = ",".join(cut)
    return Ready(
        web.Response(
            body=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), content_type=JSON, headers=headers
        )
    )


async def _encoded(given: str | list[str | int | list[int]], embedder: AsyncEmbedder) -> list[EncodedText]:
    """One text per vector, from a text, texts, token ids, or lists of token ids."""
    if isinstance(given, str):
        return await embedder.encode([given])
    texts = [item for item in given if isinstance(item, str)]
    token_ids = [item for item in given if isinstance(item, int)]
    lists = [item for item in given if isinstance(item, list)]
    if not given or len(given) not in (len(texts), len(token_ids), len(lists)):
        raise InvalidRequestError(
            "input must be a string, a list of strings, a list of token ids, or a list of such lists; "
            "not empty, not mixed.",
            param="input",
        )
    if len(given) > MAX_INPUTS and not token_ids:
        raise InvalidRequestError(
            f"input holds {len(given)} texts; at most {MAX_INPUTS} fit one request. Send several.",
            param="input",
        )
    if texts:
        return await embedder.encode(texts)
    most = embedder.info.max_tokens
    return [EncodedText(ids[:most], len(ids) > most) for ids in lists or [token_ids]]


EMBEDDINGS = Dialect(
    generates=False,
    operation="embeddings",
    plan=_plan,
    local=_local,
    remote=lambda asked, target: relay(
        asked, target, lambda up: EMBEDDINGS_API if up.format == "openai" else None
    ),
)
