"""A request on its way to an upstream, and the reply on its way back: bytes as they are, read once beside.

What is deterministic is looked up before and kept after, as the engine's answers are; those who ask for the same at the same
time share one reply.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import orjson

from ...cache import CacheKey, CompletionCache, completion_key
from ...cache.selection import texts_in
from ...errors import (
    PenstockError,
    UnsupportedParameterError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamTimeoutError,
)
from ..cascade.attempt import EscalatedError, NotKeptError
from ..flight import AtOnce, Flights, Source
from ..keeping import Keeping
from ..provenance import Provenance
from ..routing.target import RemoteTarget
from ..tenants.admission import Call
from ..whole_prompt import whole_prompt
from .events import split
from .pool import UpstreamPool
from .reading import Reading, TokenCounts, tokens_in
from .remote_api import EXTENSION, RemoteApi, cacheable_fields, wants_usage
from .reply import UpstreamReply
from .spend import reused_spend, spend_of
from .upstream import Question, Upstream

if TYPE_CHECKING:
    from ..answering import Asked

UPSTREAM_ID = "x-penstock-upstream-id"

Bytes: TypeAlias = Source[bytes]


class RelayHead(msgspec.Struct):
    """What is known of a reply before it is sent, and by its end.

    Attributes:
        request_id: the upstream's.
        reading: None of a kept one; `kept`: what that says of its tokens.
    """

    provenance: Provenance
    request_id: str | None = None
    reading: Reading | None = None
    kept: TokenCounts | None = None

    @property
    def tokens(self) -> TokenCounts | None:
        return self.kept if self.reading is None else self.reading.tokens


class Relay:
    """Args:
    cache: None when caching is off.
    keeping: what the operator lets it keep; replaced when the settings file is read anew.
    """

    def __init__(self, pool: UpstreamPool, cache: CompletionCache | None, keeping: Keeping) -> None:
        self._pool = pool
        self._cache = cache
        self._flights: Flights[RelayHead, bytes] = Flights(len)
        self.keeping = keeping

    async def start(self, asked: "Asked", target: RemoteTarget, api: RemoteApi) -> tuple[RelayHead, Bytes]:
        """What to send; its first bytes are there. Raises UpstreamError."""
        upstream = self._pool[target.upstream]
        key = self._key(asked, target, upstream, api)
        read, write = asked.controls.read, asked.controls.write
        if self._cache is not None and key is not None and read:
            hit = self._cache.lookup(key)
            body = None if hit is None else hit.completion.choices[0].wire
            if hit is not None and body is not None:
                tokens = tokens_in(body)
                with asked.admission.call(target.name) as call:
                    call.settle(reused_spend(target, tokens, hit.completion.engine_seconds))
                return RelayHead(Provenance.of_hit(hit), kept=tokens), AtOnce(api.replay(asked, target, body))
        if asked.attempt.only_kept:
            raise NotKeptError("Nothing was kept.")
        keep = key if write else None
        # Deadlines are counted from each request's own arrival.
        if key is not None and read and write and not asked.urgency.has_deadline:
            like = (
                key.place,
                key.digest,
                asked.stream,
                wants_usage(asked.fields),
                asked.controls.ttl,
                asked.urgency,
            )
            reader, first = self._flights.board(
                like, lambda: self._launch(asked, target, api, upstream, keep)
            )
            try:
                head = await reader.head()
            except BaseException:
                await reader.aclose()
                raise
            if not first:
                head = msgspec.structs.replace(head, provenance=Provenance("shared"))
            return head, reader
        return await self._launch(asked, target, api, upstream, keep)

    async def _launch(
        self, asked: "Asked", target: RemoteTarget, api: RemoteApi, upstream: Upstream, keep: CacheKey | None
    ) -> tuple[RelayHead, Bytes]:
        call = asked.admission.call(target.name)
        try:
            return await self._called(asked, target, api, upstream, keep, call)
        except BaseException:
            call.close()
            raise

    async def _called(
        self,
        asked: "Asked",
        target: RemoteTarget,
        api: RemoteApi,
        upstream: Upstream,
        keep: CacheKey | None,
        call: Call,
    ) -> tuple[RelayHead, Bytes]:
        started = time.perf_counter()
        ask_usage = asked.stream and api.asks_for_usage and upstream.settings.stream_usage
        own_usage = ask_usage and not wants_usage(asked.fields)
        try:
            _check_extension(asked)
            question = Question(
                path=api.path,
                body=_body(asked, target, api, ask_usage=own_usage),
                headers=_headers(asked, api),
                stream=asked.stream,
                urgency=asked.urgency,
            )
            reply = await upstream.ask(question)
        except PenstockError as error:
            # One that was too slow may have computed it.
            if not isinstance(error, UpstreamTimeoutError) or isinstance(error, UpstreamConnectError):
                call.refused()
            raise
        reading = api.reading(asked, target, keep is not None, own_usage)
        looked_up = keep is not None and asked.controls.read
        head = RelayHead(Provenance("miss" if looked_up else "bypass"), reply.request_id, reading)

        def settle() -> None:
            if keep is not None and self._cache is not None:
                completion = reading.completion(seconds=time.perf_counter() - started)
                if completion is not None:
                    prompt = self.keeping.prompt(
                        asked.caller.account, lambda: whole_prompt(_fields(asked, api), target.name)
                    )
                    self._cache.store(keep, completion, ttl=asked.controls.ttl, prompt=prompt)

        if reply.is_stream != asked.stream:
            reply.close()
            what = "a stream" if reply.is_stream else "no stream"
            raise UpstreamError(f"The upstream {upstream.name} answered with {what}.")
        if not asked.stream:
            reply.close()
            try:
                body = reading.whole(reply.body)
            except EscalatedError:
                call.settle(spend_of(target, reading.tokens))
                raise
            call.settle(spend_of(target, reading.tokens))
            settle()
            return head, AtOnce(body)
        forwarded = _Forwarded(reply, reading, settle, lambda: call.settle(spend_of(target, reading.tokens)))
        try:
            await forwarded.begin()
        except EscalatedError:
            call.settle(spend_of(target, reading.tokens))
            raise
        return head, forwarded

    def _key(
        self, asked: "Asked", target: RemoteTarget, upstream: Upstream, api: RemoteApi
    ) -> CacheKey | None:
        """None for what is never kept: answers that stand for a whole distribution, unless asked for, what the operator
        excluded, and what the upstream is asked to keep itself."""
        fields, controls = asked.fields, asked.controls
        if self._cache is None or not (controls.read or controls.write):
            return None
        if fields.get("temperature") != 0 and fields.get("seed") is None and not controls.sampled:
            return None
        if fields.get("store") or fields.get("background"):
            return None
        if self.keeping.excludes(texts_in(fields)):
            return None
        return completion_key(
            tenant=asked.caller.tenant,
            namespace=controls.namespace,
            model=target.name,
            fingerprint=f"{upstream.settings.base_url} {api.name}",
            request={**cacheable_fields(fields), "model": target.model, "headers": _passed_on(asked, api)},
        )


class _Forwarded:
    """The events of a reply; `settle` is called when its answer has come to its end, `on_close` in any case."""

    def __init__(
        self,
        reply: UpstreamReply,
        reading: Reading,
        settle: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        self._reply = reply
        self._reading = reading
        self._settle = settle
        self._on_close = on_close
        self._ended = False
        self._first = b""

    async def begin(self) -> None:
        """Reads the first events: should they be no answer, another target can still be asked. Raises UpstreamError."""
        try:
            self._first = await anext(self, b"")
        except BaseException:
            self._reply.close()
            raise

    def __aiter__(self) -> "_Forwarded":
        return self

    async def __anext__(self) -> bytes:
        """Raises UpstreamError, also where the stream ends before its answer does: then nothing is kept."""
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._ended:
            raise StopAsyncIteration
        while block := await self._reply.next_block():
            events = split(block)
            try:
                if len(events) == 1:  # nearly always
                    shown = self._reading.shown(block)
                else:
                    shown = b"".join([self._reading.shown(event) for event in events])
            except UpstreamError as error:
                error.message = self._reply.shown(error.message)
                raise
            if shown:
                return shown
        self._ended = True
        if not self._reading.finished:
            raise UpstreamError(
                f"The upstream {self._reply.upstream} ended its stream before its answer was finished."
            )
        self._settle()
        if end := self._reading.end():
            return end
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._reply.close()
        self._on_close()


def _body(asked: "Asked", target: RemoteTarget, api: RemoteApi, *, ask_usage: bool) -> bytes:
    """The client's own bytes wherever nothing has to differ.

    What a tenant may is decided by the fields as we read them: were one there twice, the upstream might read the other.
    """
    same = api.fields is None and target.model == asked.model and EXTENSION not in asked.fields
    if same and not ask_usage and not asked.caller.account.is_limited:
        return asked.body
    fields = _fields(asked, api)
    changed: dict[str, Any] = {**fields, "model": target.model}
    changed.pop(EXTENSION, None)
    if ask_usage:
        changed["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
    return orjson.dumps(changed)


def _fields(asked: "Asked", api: RemoteApi) -> dict[str, Any]:
    """Of the request, in the upstream's API."""
    return asked.fields if api.fields is None else api.fields(asked)


def _check_extension(asked: "Asked") -> None:
    """Raises UnsupportedParameterError for what only the local engine honours."""
    given = asked.fields.get(EXTENSION)
    if not isinstance(given, dict):
        return
    for name in ("drafters", "sparse_attention"):
        if given.get(name) is not None:
            raise UnsupportedParameterError(
                f"penstock.{name} is for the local engine, and no upstream knows it. Remove it.",
                param=f"penstock.{name}",
            )


def _headers(asked: "Asked", api: RemoteApi) -> dict[str, str]:
    record = asked.record
    headers = {"x-request-id": record.request_id, **_passed_on(asked, api)}
    if record.traceparent is not None:
        headers["traceparent"] = record.traceparent
        if record.tracestate is not None:
            headers["tracestate"] = record.tracestate
    return headers


def _passed_on(asked: "Asked", api: RemoteApi) -> dict[str, str]:
    given = asked.request.headers
    return {name: given[name] for name in api.headers if name in given}
