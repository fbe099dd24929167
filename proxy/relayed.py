"""An upstream's answer on its way to the client."""

import logging

from aiohttp import web

from ..errors import PenstockError
from .answering import Asked
from .edge import caller_of
from .errors import JSON, internal_error
from .reply import MODEL, STREAM_HEADERS, write
from .routing.target import RemoteTarget, Target
from .upstreams.relay import UPSTREAM_ID, Bytes, RelayHead
from .upstreams.remote_api import RemoteApi

log = logging.getLogger(__name__)


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
                return await self._stream()
            async for body in self._source:
                return web.Response(body=body, content_type=JSON, headers=self._headers)
            raise AssertionError("a body has one piece")
        finally:
            await self._source.aclose()

    async def _stream(self) -> web.StreamResponse:
        """Ends as the upstream ends it, or with an error event and nothing after it."""
        request, timeout = self._asked.request, self._asked.context.settings.write_timeout
        response = web.StreamResponse(headers={**STREAM_HEADERS, **self._headers})
        try:
            await response.prepare(request)
            async for block in self._source:
                await write(request, response, block, timeout)
        except PenstockError as error:
            log.log(error.log_level, "%s broke off: %s", caller_of(request).request_id, error.message)
            await write(request, response, self._api.failed(error), timeout)
        except ConnectionError:
            raise
        except Exception:
            identity = caller_of(request).request_id
            log.exception("%s broke off", identity)
            await write(request, response, self._api.failed(internal_error(identity)), timeout)
        return response
