"""OpenAI's APIs as upstreams speak them."""

from .chat_parts import ChatParts
from .reading import BodyReading, OpenAIReading, ResponsesReading, TokenCounts
from .remote_api import RemoteApi, Spoken, wants_usage
from .replay import as_stream


def _older(name: str, path: str, *, chat: bool) -> RemoteApi:
    return RemoteApi(
        name=name,
        path=path,
        reading=lambda asked, _target, keep, own_usage: OpenAIReading(
            chat=chat, keep=keep, own_usage=own_usage, choices=asked.choices
        ),
        replay=lambda asked, _target, wire: (
            as_stream(wire, include_usage=wants_usage(asked.fields)) if asked.stream else wire
        ),
        asks_for_usage=True,
    )


CHAT_API = _older("chat", "/chat/completions", chat=True)
COMPLETIONS_API = _older("completions", "/completions", chat=False)
EMBEDDINGS_API = RemoteApi(
    name="embeddings",
    path="/embeddings",
    reading=lambda *_: BodyReading(),
    replay=lambda _asked, _target, wire: wire,
)
RESPONSES_API = RemoteApi(
    name="responses",
    path="/responses",
    reading=lambda *_: ResponsesReading(),
    replay=lambda _asked, _target, wire: wire,
)
INPUT_TOKENS_API = RemoteApi(
    name="input_tokens",
    path="/responses/input_tokens",
    reading=lambda *_: BodyReading(TokenCounts(0, 0, 0)),  # counting is free
    replay=lambda _asked, _target, wire: wire,
)
CHAT_SPOKEN = Spoken(
    name="chat",
    path="/chat/completions",
    reader=ChatParts,
    from_chat=lambda fields: fields,
    asks_for_usage=True,
)
