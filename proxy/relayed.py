"""An upstream's answer on its way to the client."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from aiohttp import web

from ..errors import PenstockError, UnsupportedParameterError
from ..tables import Upstream
from .answering import Asked
from .errors import JSON
from .event_stream import send_events
from .observe.observation import Observation, Unobserved
from .reply import MODEL
from .routing.target import RemoteTarget, Target
from .upstreams.relay import UPSTREAM_ID, Bytes, RelayHead
from .upstreams.remote_api import RemoteApi
from .upstreams.spend import cost_of, reused_spend


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
    if asked.attempt.trial is not None:
        from .cascade.upstream_trial import judged_api  # judges need numpy, and other routes none

        api = judged_api(api, asked.attempt.trial)
    asked.record.upstream = target.upstream
    asked.record.hand_over()
    head, source = await asked.context.relay.start(asked, target, api)
    return RelayedAnswer(asked, target, head, source)


class RelayedAnswer:
    """A `Started` (answering.py)."""

    def __init__(self, asked: Asked, target: RemoteTarget, head: RelayHead, source: Bytes) -> None:
        self._asked = asked
        self._target, self._head = target, head
        self._source = source
        observe = Unobserved if asked.attempt.unseen else Observation
        self._observation = observe(asked.context.metrics, asked.record, head.provenance)
        self._observation.piece()  # its first token is there
        self._whole = False
        self._headers = {**head.provenance.headers(), MODEL: target.name}
        if head.request_id is not None:
            self._headers[UPSTREAM_ID] = head.request_id

    async def send(self) -> web.StreamResponse:
        try:
            if self._asked.stream:
                async with aclosing(self._pieces()) as pieces:
                    return await send_events(
                        self._asked.request,
                        self._headers,
                        pieces,
                        failed=self._failed,
                        write_timeout=self._asked.context.settings.write_timeout,
                    )
            return web.Response(body=await self._body(), content_type=JSON, headers=self._headers)
        finally:
            await self._end()

    async def whole(self) -> bytes:
        try:
            return await self._body()
        finally:
            await self._end()

    @property
    def said(self) -> str | None:
        trial = self._asked.attempt.trial
        return trial.said if trial is not None and self._whole else None

    async def _body(self) -> bytes:
        async for body in self._source:
            self._whole = True
            return body
        raise AssertionError("a body has one piece")

    async def _end(self) -> None:
        try:
            await self._source.aclose()
        finally:
            if self._head.provenance.outcome == "shared":
                with self._asked.admission.call(self._target.name) as call:
                    call.settle(reused_spend(self._target, self._head.tokens, None))
            self._close()

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        """Of the stream; the first has been waited for."""
        came = True
        async for block in self._source:
            if not came:
                self._observation.piece()
            yield block
            came = False
            self._observation.wants_next()
        self._observation.waited()
        self._whole = True

    def _close(self) -> None:
        reading, tokens = self._head.reading, self._head.tokens
        self._observation.close(
            whole=self._whole, finish_reasons=() if reading is None else reading.finish_reasons
        )
        if tokens is not None:
            self._asked.record.used(tokens.prompt, tokens.cached, tokens.completion)
        if self._head.provenance.outcome in ("miss", "bypass"):  # an answer that was asked for, once
            figures = self._asked.context.metrics.upstream(self._target.upstream)
            figures.answered(self._asked.record, None if tokens is None else cost_of(self._target, tokens))

    def _failed(self, error: PenstockError) -> bytes:
        assert self._head.reading is not None, "what was kept does not fail"
        return self._head.reading.failed(error)
