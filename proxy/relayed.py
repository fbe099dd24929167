"""An upstream's answer on its way to the client."""

from aiohttp import web

from .answering import Asked
from .errors import JSON
from .event_stream import send_events
from .reply import MODEL
from .routing.target import RemoteTarget, Target
from .upstreams.relay import UPSTREAM_ID, Bytes, RelayHead
from .upstreams.remote_api import RemoteApi


async def relay(asked: Asked, target: Target, api: RemoteApi) -> "RelayedAnswer":
    """Raises UpstreamError."""
    assert isinstance(target, RemoteTarget)
    head, source = await asked.context.relay.start(asked, target, api)
    return RelayedAnswer(asked, target, api, head, source)


class RelayedAnswer:
    """A `Started` (answering.py)."""

    def __init__(
        self, asked: Asked, target: RemoteTarget, api: RemoteApi, head: RelayHead, source: Bytes
    ) -> None:
        self._asked = asked
        self._api = api
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
                    failed=self._api.failed,
                    write_timeout=self._asked.context.settings.write_timeout,
                )
            async for body in self._source:
                return web.Response(body=body, content_type=JSON, headers=self._headers)
            raise AssertionError("a body has one piece")
        finally:
            await self._source.aclose()
