"""An upstream's answer on its way to the client."""

from collections.abc import Callable

from aiohttp import web

from ..errors import PenstockError, UnsupportedParameterError
from ..tables import Upstream
from .answering import Asked
from .errors import JSON
from .event_stream import send_events
from .reply import MODEL
from .routing.target import RemoteTarget, Target
from .upstreams.relay import UPSTREAM_ID, Bytes, RelayHead
from .upstreams.remote_api import RemoteApi
from .upstreams.spend import reused_spend


async def relay(
    asked: Asked, target: Target, apis: Callable[[Upstream], RemoteApi | None]
) -> "RelayedAnswer":
    """`apis`: how an upstream is asked for it; None where it cannot be.

    Raises UpstreamError or UnsupportedParameterError.
    """
    assert isinstance(target, RemoteTarget)
    api = apis(asked.context.upstreams[target.upstream].settings)
    if api is None:
        raise UnsupportedParameterError(
            f"{target.name} is asked in an API that has nothing like {asked.request.path}.", param="model"
        )
    head, source = await asked.context.relay.start(asked, target, api)
    return RelayedAnswer(asked, target, head, source)


class RelayedAnswer:
    """A `Started` (answering.py)."""

    def __init__(self, asked: Asked, target: RemoteTarget, head: RelayHead, source: Bytes) -> None:
        self._asked = asked
        self._target, self._head = target, head
        self._source = source
        self._headers = {**head.provenance.headers(), MODEL: target.name}
        if head.request_id is not None:
            self._headers[UPSTREAM_ID] = head.request_id

    async def send(self) -> web.StreamResponse:
        try:
            if self._asked.stream:
                return await send_events(
                    self._asked.request,
                    self._headers,
                    self._source,
                    failed=self._failed,
                    write_timeout=self._asked.context.settings.write_timeout,
                )
            async for body in self._source:
                return web.Response(body=body, content_type=JSON, headers=self._headers)
            raise AssertionError("a body has one piece")
        finally:
            await self._source.aclose()
            if self._head.provenance.outcome == "shared":
                with self._asked.admission.call(self._target.name) as call:
                    call.settle(reused_spend(self._target, self._head.tokens, None))

    def _failed(self, error: PenstockError) -> bytes:
        assert self._head.reading is not None, "what was kept does not fail"
        return self._head.reading.failed(error)
