"""OpenAI's older APIs as an upstream speaks them."""

from ..errors import body_of
from ..sse import event
from .reading import BodyReading, OpenAIReading
from .remote_api import RemoteApi
from .replay import as_stream

CHAT_API = RemoteApi(
    path="/chat/completions",
    reading=lambda keep, own_usage: OpenAIReading(chat=True, keep=keep, own_usage=own_usage),
    replay=lambda body, include_usage: as_stream(body, include_usage=include_usage),
    failed=lambda error: event(body_of(error)),
    asks_for_usage=True,
)
COMPLETIONS_API = RemoteApi(
    path="/completions",
    reading=lambda keep, own_usage: OpenAIReading(chat=False, keep=keep, own_usage=own_usage),
    replay=lambda body, include_usage: as_stream(body, include_usage=include_usage),
    failed=lambda error: event(body_of(error)),
    asks_for_usage=True,
)
EMBEDDINGS_API = RemoteApi(
    path="/embeddings",
    reading=lambda _keep, _own_usage: BodyReading(),
    replay=lambda body, _include_usage: body,
    failed=lambda error: event(body_of(error)),
    asks_for_usage=False,
)
