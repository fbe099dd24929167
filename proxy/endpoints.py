"""Every route: what answers it, and what it takes and gives. The application and /openapi.json are made from this table.

Another endpoint is another line here. That it needs no key is said in `edge.OPEN_ROUTES`.
"""

from collections.abc import Collection, Mapping

import msgspec

from . import replies
from .anthropic import replies as anthropic
from .anthropic.types import CountTokensRequest, MessagesRequest
from .compat import NEUTRAL_IN_CHAT, NEUTRAL_IN_COMPLETIONS, NEUTRAL_IN_EMBEDDINGS, NEUTRAL_IN_MESSAGES
from .edge import Handler
from .openai_types import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingsRequest,
    TokenizeRequest,
)
from .responses import replies as responses
from .responses.request import ENGINE_FIELDS, NEUTRAL_IN_RESPONSES, ResponsesRequest
from .routes.chat import chat_completions
from .routes.completions import completions
from .routes.dashboard import dashboard_events, dashboard_page, dashboard_request
from .routes.description import openapi
from .routes.embeddings import create_embeddings
from .routes.messages import count_tokens, messages
from .routes.models import get_model, list_models
from .routes.responses import count_input_tokens, create_response, not_stored
from .routes.status import live, metrics, ready
from .routes.tokens import detokenize, tokenize


class Endpoint(msgspec.Struct, frozen=True):
    """One route.

    Attributes:
        about: one line for the API's description.
        takes: type of the JSON body; None for none.
        gives: type of a successful reply; None for what is no JSON of ours.
        events: type of what the events of a stream hold; None where nothing streams.
        neutral: further fields that are accepted, most of them only where they ask for nothing.
        own: fields of `takes` that the server fills in itself.
        fails: type of a refusal or a failure.
        not_ready: a reply of this type may also come as 503.
        example: a body that is answered where any model's name is (`model_aliases`), or this one's.
    """

    method: str
    path: str
    handler: Handler
    about: str
    takes: type[msgspec.Struct] | None = None
    gives: type[msgspec.Struct] | None = None
    events: type[msgspec.Struct] | None = None
    neutral: Collection[str] = ()
    own: Collection[str] = ()
    fails: type[msgspec.Struct] = replies.Error
    not_ready: bool = False
    example: Mapping[str, object] | None = None


_HELLO = {"role": "user", "content": "how do I extract an archive?"}
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        "Answer a conversation.",
        takes=ChatRequest,
        gives=replies.ChatCompletion,
        events=replies.ChatCompletionChunk,
        neutral=NEUTRAL_IN_CHAT,
        example={"model": "builtin", "messages": [_HELLO], "max_tokens": 16},
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        completions,
        "Continue a text.",
        takes=CompletionRequest,
        gives=replies.TextCompletion,
        events=replies.TextCompletion,
        neutral=NEUTRAL_IN_COMPLETIONS,
        example={"model": "builtin", "prompt": "tar -xzf", "max_tokens": 16},
    ),
    Endpoint(
        "POST",
        "/v1/messages",
        messages,
        "Answer a conversation, in Anthropic's form.",
        takes=MessagesRequest,
        gives=anthropic.MessageReply,
        events=anthropic.MessageEvent,
        fails=anthropic.MessageError,
        neutral=NEUTRAL_IN_MESSAGES,
        example={"model": "builtin", "messages": [_HELLO], "max_tokens": 16},
    ),
    Endpoint(
        "POST",
        "/v1/messages/count_tokens",
        count_tokens,
        "Tokens of a conversation, in Anthropic's form.",
        takes=CountTokensRequest,
        gives=anthropic.TokenCount,
        fails=anthropic.MessageError,
        neutral=NEUTRAL_IN_MESSAGES,
        example={"model": "builtin", "messages": [_HELLO]},
    ),
    Endpoint(
        "POST",
        "/v1/responses",
        create_response,
        "Answer a conversation, in the form of OpenAI's newer API; nothing is stored.",
        takes=ResponsesRequest,
        gives=responses.ResponseReply,
        events=responses.ResponseEvent,
        neutral=(*NEUTRAL_IN_RESPONSES, *ENGINE_FIELDS),
        own=("engine",),
        example={"model": "builtin", "input": "how do I extract an archive?", "max_output_tokens": 16},
    ),
    Endpoint(
        "POST",
        "/v1/responses/input_tokens",
        count_input_tokens,
        "Tokens of what a response would answer.",
        takes=ResponsesRequest,
        gives=responses.InputTokens,
        neutral=(*NEUTRAL_IN_RESPONSES, *ENGINE_FIELDS),
        own=("engine",),
        example={"model": "builtin", "input": "how do I extract an archive?"},
    ),
    Endpoint("GET", "/v1/responses/{id}", not_stored, "Nothing is stored: always 404."),
    Endpoint("DELETE", "/v1/responses/{id}", not_stored, "Nothing is stored: always 404."),
    Endpoint("POST", "/v1/responses/{id}/cancel", not_stored, "Nothing is stored: always 404."),
    Endpoint("GET", "/v1/responses/{id}/input_items", not_stored, "Nothing is stored: always 404."),
    Endpoint(
        "POST",
        "/v1/embeddings",
        create_embeddings,
        "Vectors of texts.",
        takes=EmbeddingsRequest,
        gives=replies.Embeddings,
        neutral=NEUTRAL_IN_EMBEDDINGS,
        example={"model": "all-MiniLM-L6-v2", "input": "how do I extract an archive?"},
    ),
    Endpoint("GET", "/v1/models", list_models, "All models.", gives=replies.Models),
    Endpoint("GET", "/v1/models/{id:.+}", get_model, "One model.", gives=replies.Model),
    Endpoint(
        "POST",
        "/tokenize",
        tokenize,
        "Tokens of a text, or of a conversation.",
        takes=TokenizeRequest,
        gives=replies.Tokens,
        example={"messages": [_HELLO], "return_token_strs": True},
    ),
    Endpoint(
        "POST",
        "/detokenize",
        detokenize,
        "The text of tokens.",
        takes=DetokenizeRequest,
        gives=replies.Detokenized,
        example={"tokens": [72, 105]},
    ),
    Endpoint(
        "GET",
        "/health",
        ready,
        "Whether requests would be answered.",
        gives=replies.Health,
        not_ready=True,
    ),
    Endpoint("GET", "/health/ready", ready, "As /health.", gives=replies.Health, not_ready=True),
    Endpoint("GET", "/health/live", live, "Whether the process answers.", gives=replies.Health),
    Endpoint("GET", "/metrics", metrics, "Figures for Prometheus."),
    Endpoint(
        "GET", "/dashboard", dashboard_page, "Figures for people; where the server has no keys, from here."
    ),
    Endpoint("GET", "/dashboard/events", dashboard_events, "What that page is shown, once a second."),
    Endpoint("GET", "/dashboard/requests/{id}", dashboard_request, "What became of one of its requests."),
    Endpoint("GET", "/openapi.json", openapi, "This description."),
)
