"""A request on its way to an upstream, and the reply on its way back: bytes as they are, read once beside.

What is deterministic is looked up before and kept after, as the engine's answers are; those who ask for the same at the same
time share one reply. Where trusted answers are allowed, one is looked for by meaning, too, before an upstream is asked; what
it answers, be it in the background, teaches what can be trusted.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import orjson

from ...cache import CachedCompletion, CacheKey, CompletionCache, completion_key
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
from ..metrics import Metrics
from ..near_search import NearSearch
from ..provenance import Provenance
from ..routing.target import RemoteTarget
from ..settling import Settling
from ..tenants.admission import Call
from ..unseen import unseen
from ..whole_prompt import whole_prompt
from .events import split
from .meaning import is_plain
from .near_answers import NearAnswers
from .pool import UpstreamPool
from .reading import Reading, TokenCounts, tokens_in
from .remote_api import EXTENSION, RemoteApi, cacheable_fields, wants_usage
from .reply import UpstreamReply
from .spend import cost_of, reused_spend, spend_of
from .upstream import Question, Upstream

if TYPE_CHECKING:
    from ..answering import Asked

log = logging.getLogger(__name__)

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
    near: None when only exact repeats are to be found.
    metrics: told of what is learnt.
    keeping: what the operator lets it keep; replaced when the settings file is read anew.
    """

    def __init__(
        self,
        pool: UpstreamPool,
        cache: CompletionCache | None,
        near: NearAnswers | None,
        metrics: Metrics,
        keeping: Keeping,
    ) -> None:
        self._pool = pool
        self._cache = cache
        self._near = near
        self._metrics = metrics
        self._settling = Settling()
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
                seconds = hit.completion.engine_seconds
                return _again(asked, target, api, Provenance.of_hit(hit), body, seconds)
        if asked.attempt.only_kept:
            raise NotKeptError("Nothing was kept.")
        # Deadlines are counted from each request's own arrival.
        if key is not None and read and write and not asked.urgency.has_deadline:
            like = (
                key.place,
                key.digest,
                asked.stream,
                wants_usage(asked.fields),
                asked.controls.ttl,
                asked.urgency,
                None if self._near is None else self._near.mode(asked),
                asked.attempt.unseen,  # what others are compared with is no answer of a neighbour's
            )
            reader, first = self._flights.board(like, lambda: self._launch(asked, target, api, upstream, key))
            try:
                head = await reader.head()
            except BaseException:
                await reader.aclose()
                raise
            if not first:
                head = msgspec.structs.replace(head, provenance=Provenance("shared"))
            return head, reader
        return await self._launch(asked, target, api, upstream, key)

    async def close(self) -> None:
        """Gives up what is asked in the background, and waits, not for long, for what is still to be kept."""
        if self._near is not None:
            await self._near.shadows.close()
        await self._settling.close()

    async def _launch(
        self, asked: "Asked", target: RemoteTarget, api: RemoteApi, upstream: Upstream, key: CacheKey | None
    ) -> tuple[RelayHead, Bytes]:
        keep = key if asked.controls.write else None
        search = None
        if self._near is not None and key is not None and self._near.wants(asked):
            request = _request(asked, target, api, _fields(asked, api))
            search = self._near.search(asked, _names(asked, target, api, upstream), request)
            trusted = None if search is None else await self._near.trusted(asked, search)
            if search is not None and trusted is not None:
                provenance = Provenance.of_trusted(trusted.neighbour)
                seconds = trusted.neighbour.completion.engine_seconds
                head, source = _again(asked, target, api, provenance, trusted.wire, seconds)
                if trusted.is_drawn:
                    check = partial(self._check, asked, target, api, upstream, keep, search)
                    source = _Followed(source, partial(self._near.shadows.call, check))
                return head, source
        return await self._called(asked, target, api, upstream, keep, search)

    async def _called(
        self,
        asked: "Asked",
        target: RemoteTarget,
        api: RemoteApi,
        upstream: Upstream,
        keep: CacheKey | None,
        search: NearSearch | None,
    ) -> tuple[RelayHead, Bytes]:
        """Asks, as one call of the account, which ends here where that fails."""
        _check_extension(asked)
        started = time.perf_counter()
        ask_usage = asked.stream and api.asks_for_usage and upstream.settings.stream_usage
        own_usage = ask_usage and not wants_usage(asked.fields)
        question = Question(
            path=api.path,
            body=_body(asked, target, api, ask_usage=own_usage),
            headers=_headers(asked, api),
            stream=asked.stream,
            urgency=asked.urgency,
        )
        reading = api.reading(asked, target, keep is not None or search is not None, own_usage)
        call = asked.admission.call(target.name)

        def spent() -> None:
            call.settle(spend_of(target, reading.tokens))

        def settle() -> None:
            if keep is not None or search is not None:
                completion = reading.completion(seconds=time.perf_counter() - started)
                self._settle(asked, target, api, keep, search, completion)

        try:
            reply = await _asked(upstream, question, call)
            looked_up = keep is not None and asked.controls.read
            head = RelayHead(Provenance("miss" if looked_up else "bypass"), reply.request_id, reading)
            if reply.is_stream != asked.stream:
                reply.close()
                what = "a stream" if reply.is_stream else "no stream"
                raise UpstreamError(f"The upstream {upstream.name} answered with {what}.")
            if asked.stream:
                forwarded = _Forwarded(reply, reading, settle, spent)
                await forwarded.begin()
                return head, forwarded
            reply.close()
            body = reading.whole(reply.body)
            spent()
            settle()
            return head, AtOnce(body)
        except EscalatedError:
            spent()
            raise
        except BaseException:
            call.close()
            raise

    def _settle(
        self,
        asked: "Asked",
        target: RemoteTarget,
        api: RemoteApi,
        keep: CacheKey | None,
        search: NearSearch | None,
        completion: CachedCompletion | None,
    ) -> None:
        """Keeps a whole answer, unless `keep` is None, and learns from it. `completion` None: it cannot be kept."""
        ttl, prompt = asked.controls.ttl, None
        if keep is not None and completion is not None:
            prompt = self.keeping.prompt(
                asked.caller.account, lambda: whole_prompt(_fields(asked, api), target.name)
            )
        if completion is not None and (search is None or not is_plain(completion)):
            # Found by exact repeats only, and unlike every answer that is found otherwise.
            if keep is not None and self._cache is not None:
                self._cache.store(keep, completion, ttl=ttl, prompt=prompt)
            completion = None
        if search is not None:
            self._settling.add(search.settle(keep, completion, ttl, self._metrics, prompt))

    async def _check(
        self,
        asked: "Asked",
        target: RemoteTarget,
        api: RemoteApi,
        upstream: Upstream,
        keep: CacheKey | None,
        search: NearSearch,
    ) -> None:
        """Asks for what was served as trusted, to learn from it."""
        again = unseen(asked)
        try:
            head, _ = await self._called(again, target, api, upstream, keep, search)
        except PenstockError as error:
            log.info("%s: a trusted answer is not checked: %s", asked.caller.request_id, error.logged)
            self._metrics.cache_shadow(answered=False)
            return
        tokens = head.tokens
        cost = None if tokens is None else cost_of(target, tokens)
        if tokens is not None:
            again.record.used(tokens.prompt, tokens.cached, tokens.completion)
        self._metrics.cache_shadow(answered=True, cost=cost)
        self._metrics.upstream(target.upstream).answered(again.record, cost)

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
        request = _request(asked, target, api, fields)
        return completion_key(**_names(asked, target, api, upstream), request=request)


class _Followed:
    """The same source; once it is closed, its client having been served, something is done."""

    def __init__(self, source: Bytes, after: Callable[[], None]) -> None:
        self._source, self._after = source, after
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._source.__aiter__()

    def __anext__(self) -> Awaitable[bytes]:
        return self._source.__anext__()

    async def aclose(self) -> None:
        await self._source.aclose()
        if not self._is_closed:
            self._is_closed = True
            self._after()


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


async def _asked(upstream: Upstream, question: Question, call: Call) -> UpstreamReply:
    try:
        return await upstream.ask(question)
    except PenstockError as error:
        # One that was too slow may have computed it.
        if not isinstance(error, UpstreamTimeoutError) or isinstance(error, UpstreamConnectError):
            call.refused()
        raise


def _again(
    asked: "Asked", target: RemoteTarget, api: RemoteApi, provenance: Provenance, wire: bytes, seconds: float
) -> tuple[RelayHead, Bytes]:
    """A kept answer, which took `seconds`."""
    tokens = tokens_in(wire)
    with asked.admission.call(target.name) as call:
        call.settle(reused_spend(target, tokens, seconds))
    return RelayHead(provenance, kept=tokens), AtOnce(api.replay(asked, target, wire))


def _names(asked: "Asked", target: RemoteTarget, api: RemoteApi, upstream: Upstream) -> dict[str, str]:
    """Whose answer it is, and for whom."""
    return {
        "tenant": asked.caller.tenant,
        "namespace": asked.controls.namespace,
        "model": target.name,
        "fingerprint": f"{upstream.settings.base_url} {api.name}",
    }


def _request(asked: "Asked", target: RemoteTarget, api: RemoteApi, fields: dict[str, Any]) -> dict[str, Any]:
    """All that can change the answer."""
    return {**cacheable_fields(fields), "model": target.model, "headers": _passed_on(asked, api)}


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
