"""The engine as asyncio sees it: an async generator of chunks per request, over a socket to wherever the engine runs.

    engine = AsyncEngine(EngineConfig(model="builtin"))
    await engine.start()
    async for chunk in engine.generate(token_ids, SamplingParams(max_tokens=64)):
        print(chunk.text, end="")
    await engine.shutdown()

Text and stop strings live here, at the engine's edge: the engine itself knows only token ids.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, cast

import msgspec

from ..errors import EngineDeadError, InvalidRequestError, ModelLoadError, OverloadedError, PenstockError
from .detokenizer import Detokenizer, TextTokenizer
from .engine_config import EngineConfig
from .engine_process import EngineProcess, EngineThread
from .host import Host
from .outputs import Chunk, Delta, EngineStats, ModelInfo
from .protocol import (
    Abort,
    Add,
    FrameDecoder,
    Hello,
    LoadFailed,
    Refused,
    Suggest,
    ToClient,
    ToEngine,
    encode,
)
from .request_checks import check_draft
from .sampling_params import SamplingParams, checked_token_ids
from .step_record import last_step
from .urgency import ORDINARY, Urgency

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

RESTART_SECONDS = 1.0
DEAD_RETRY_SECONDS = 5.0
# A stream waits so long for an engine to come back.
RESUME_SECONDS = 120.0
# Engines that ended while computing a request, without a token from it in between, until it is suspected, and so computed
# alone; and until it is given up.
SUSPECT, GUILTY = 2, 3


class AsyncEngine:
    """Owns an engine (child process, or thread with `in_process=True`), or is one of its clients (`connect`).

    An owned engine that dies is started again, and requests in flight go on where they were: each stream gets exactly the
    tokens of an undisturbed run (where rows do not depend on their batch, as in w8a8). A request that ends engines
    itself is given up alone.

    Attributes:
        info: what is loaded; available once `start` has returned.
        stats: the latest snapshot, at most one step old.
        healthy: whether requests can be served now.
    """

    info: ModelInfo

    def __init__(self, config: EngineConfig, *, in_process: bool = False) -> None:
        self._host: Host | None = EngineThread(config) if in_process else EngineProcess(config)
        self._init(self._host.address)

    @classmethod
    def connect(cls, address: str) -> "AsyncEngine":
        """A client of an engine that somebody else started; `address` is its Unix socket."""
        engine = cls.__new__(cls)
        engine._host = None
        engine._init(address)
        return engine

    def _init(self, address: str) -> None:
        self.address = address
        self.stats = EngineStats()
        self.healthy = False
        self._tokenizer: TextTokenizer | None = None
        self._link: _Link | None = None
        self._streams: dict[str, _Stream] = {}
        self._ids = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count())
        self._keeper: asyncio.Task[None] | None = None
        self._held: deque[_Stream] = deque()
        self._on_probation: _Stream | None = None

    def attach_tokenizer(self, tokenizer: TextTokenizer) -> None:
        """Use `tokenizer` for text and stop strings instead of loading the model's."""
        self._tokenizer = tokenizer

    async def start(self) -> None:
        """Start or find the engine, and wait until its model is loaded.

        Raises ModelLoadError when the model cannot be served.
        """
        if self._host is not None:
            self._host.start()
        try:
            await self._open_link()
            if self._tokenizer is None:
                from ..models.tokenizer import Tokenizer

                self._tokenizer = await asyncio.to_thread(Tokenizer.load, self.info.path)
        except BaseException:
            await self.shutdown()
            raise
        self._keeper = asyncio.create_task(self._keep_alive(), name="penstock-engine-keeper")

    async def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        tenant: str = "default",
        draft_token_ids: list[int] | Awaitable[list[int] | None] | None = None,
        urgency: Urgency = ORDINARY,
        weight: float = 1.0,
    ) -> AsyncGenerator[Chunk, None]:
        """Stream the completions of one prompt; closing the generator aborts what is left of them at once.

        `draft_token_ids` is a completion that the model is likely to give: verified many tokens at a time, it comes that
        much faster, and what is not right of it changes nothing. One that is still being looked for may be given as an
        awaitable: nothing waits for it, and the draft is used from when it is there. An awaitable that gives None, fails or
        is cancelled gives no draft; it is cancelled with the generator's end.

        `weight`, a number above 0, is the tenant's share from now on, where several tenants want more than there is. What
        the engine's `tenant_weights` say stands above it.

        Chunks of all `params.n` completions come interleaved; each ends with a chunk that has a finish_reason. A
        reader that lags gets what piled up as one chunk. `request_id` only names the request in logs.

        Raises InvalidRequestError, ContextLengthError or OverloadedError before the first chunk, EngineDeadError any time.
        """
        if self._keeper is None or self._tokenizer is None:
            raise EngineDeadError("The engine is not running: it was not started yet, or was shut down.")
        token_ids = checked_token_ids(prompt_token_ids)
        if not 0 < weight < math.inf:
            raise InvalidRequestError(
                f"weight is {weight}; it must be a number above 0: a tenant's share beside others' of 1.",
                param="weight",
            )
        draft: list[int] | None = None
        if draft_token_ids is not None and not isinstance(draft_token_ids, Awaitable):
            draft = checked_token_ids(draft_token_ids, "draft_token_ids")
        if params.seed is None:
            # Here, so that an engine that goes on with the request draws the same tokens.
            params = msgspec.structs.replace(params, seed=secrets.randbits(63))
        engine_id = next(self._ids)
        log.debug("request %s runs as %s", request_id, engine_id)
        detokenizers = {index: Detokenizer(self._tokenizer, params) for index in range(params.n)}
        stream = _Stream(
            Add(engine_id, token_ids, params, tenant, draft, urgency, weight=weight), request_id or engine_id
        )
        self._streams[engine_id] = stream
        if self._on_probation is None:
            stream.was_sent = self._send(stream.request)
        else:
            self._held.append(stream)
        search: asyncio.Future[list[int] | None] | None = None
        if isinstance(draft_token_ids, Awaitable):
            search = asyncio.ensure_future(draft_token_ids)
            search.add_done_callback(lambda found: self._suggest(stream, found))
        try:
            while detokenizers:
                for delta in await stream.take():
                    if delta.index not in detokenizers:
                        continue  # computed before the engine heard that a stop string had ended it
                    chunk = detokenizers[delta.index].push(delta)
                    if delta.finish_reason == "error":
                        if delta.retry_after is not None:
                            raise OverloadedError(delta.error or "Too late.", retry_after=delta.retry_after)
                        if delta.param is not None:
                            raise InvalidRequestError(delta.error or "Not possible.", param=delta.param)
                        raise PenstockError(delta.error or "The engine failed to compute this sequence.")
                    if chunk.finish_reason is not None:
                        del detokenizers[delta.index]
                        if delta.finish_reason is None:
                            stream.close(delta.index)
                            self._send(Abort(engine_id, delta.index))
                    yield chunk
        finally:
            if search is not None:
                search.cancel()
            del self._streams[engine_id]
            if detokenizers and not stream.ended:
                self._send(Abort(engine_id, None))
            if self._on_probation is stream:
                self._release()

    async def hidden_state(
        self, prompt_token_ids: list[int], *, tenant: str = "default"
    ) -> "NDArray[np.float32]":
        """What the model makes of a prompt, [info.hidden_size]: the state that the first token behind it is chosen by.

        Scheduled as any request, in steps with others'. Raises as `generate`; InvalidRequestError, too, where the model's
        states are not to be had.
        """
        import numpy as np

        params = SamplingParams(max_tokens=1, temperature=0, drafters=(), hidden_state=True)
        state: bytes | None = None
        async for chunk in self.generate(prompt_token_ids, params, tenant=tenant):
            state = chunk.hidden_state
        assert state is not None
        return np.frombuffer(state, np.float32)

    def _suggest(self, stream: "_Stream", found: "asyncio.Future[list[int] | None]") -> None:
        """Pass a draft that was waited for to the engine that has its request, if any has, and to whichever will."""
        request_id = stream.request.request_id
        try:
            if found.cancelled() or found.result() is None:
                return
            draft = checked_token_ids(found.result(), "draft_token_ids")
            check_draft(self.info, draft)
        except Exception as error:
            log.warning("request %s goes on without the draft that was to come: %r", stream.name, error)
            return
        stream.request = msgspec.structs.replace(stream.request, draft_token_ids=draft)
        self._send(Suggest(request_id, draft))

    def _send(self, message: ToEngine) -> bool:
        """To the engine, or, while there is none, to nobody: the next one is told of all that still runs."""
        if self._link is None or not self.healthy:
            return False
        self._link.send(message)
        return True

    async def shutdown(self) -> None:
        """Stop an owned engine, or leave another's; requests in flight end with EngineDeadError."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        if self._link is not None:
            self._link.close()
            self._link = None
        self.healthy = False
        self._fail_streams("The engine was shut down.")
        if self._host is not None:
            await asyncio.to_thread(self._host.stop)

    async def _open_link(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Hello] = loop.create_future()
        _, link = await loop.create_unix_connection(lambda: _Link(self._on_message, ready), self.address)
        try:
            hello = await self._first_of(ready)
        except BaseException:
            ready.cancel()
            link.close()
            raise
        self._link = link
        self.info = hello.info
        self.stats = hello.stats
        self.healthy = True

    async def _first_of(self, ready: "asyncio.Future[Hello]") -> Hello:
        """The engine's greeting, unless the engine dies before it comes."""
        while True:
            done, _ = await asyncio.wait({ready}, timeout=0.2)
            if done:
                return ready.result()
            if self._host is not None and not self._host.alive:
                # It may have said why just before it ended.
                await asyncio.wait({ready}, timeout=0.2)
                if ready.done():
                    return ready.result()
                raise ModelLoadError("The engine process ended while loading the model; its log says why.")

    async def _keep_alive(self) -> None:
        """When the link breaks: start an owned engine again, link up again, and go on with what was in flight."""
        while True:
            assert self._link is not None
            await self._link.closed.wait()
            self.healthy = False
            self._held.clear()
            self._on_probation = None
            self.stats = EngineStats(kv_blocks_total=self.stats.kv_blocks_total)
            self._blame(last_step(self.address))
            if self._host is not None:
                await asyncio.to_thread(self._host.wait_dead)
            give_up = asyncio.get_running_loop().time() + RESUME_SECONDS
            while not self.healthy:
                try:
                    if self._host is not None and not self._host.alive:
                        log.error("the engine died; starting it again")
                        self._host.start()
                    await self._open_link()
                except (OSError, PenstockError) as error:
                    log.error("the engine is not back yet: %s", error)
                    if asyncio.get_running_loop().time() > give_up:
                        self._fail_streams(
                            "The engine died while computing this request, and did not come back."
                        )
                    await asyncio.sleep(RESTART_SECONDS)
            self._resume_streams()

    def _blame(self, request_ids: frozenset[str]) -> None:
        """An engine died in a step that computed these requests."""
        for engine_id in request_ids & self._streams.keys():
            stream = self._streams[engine_id]
            stream.strikes += 1
            if stream.strikes >= GUILTY:
                log.error("request %s ended %d engines and is given up", stream.name, stream.strikes)
                stream.fail(
                    PenstockError(
                        f"Computing this request has ended the engine {stream.strikes} times; it is given up. "
                        "It is not the load: send another request."
                    )
                )

    def _resume_streams(self) -> None:
        """Hand all that still runs to the new engine: those that may have ended the last ones first, one at a time.

        Such a suspect is computed alone until a token of it comes. Beside others, who may end engines too, another death
        would convict the wrong one.
        """
        running = (stream for stream in self._streams.values() if not stream.ended)
        self._held = deque(sorted(running, key=lambda stream: stream.strikes < SUSPECT))
        self._release()

    def _release(self) -> None:
        """Hand over what was held back, up to the next suspect."""
        self._on_probation = None
        while self._held and self._on_probation is None:
            stream = self._held.popleft()
            if stream.request.request_id in self._streams and not stream.ended:
                if stream.strikes >= SUSPECT:
                    self._on_probation = stream
                self._resume(stream)

    def _resume(self, stream: "_Stream") -> None:
        try:
            self._send(stream.resumption())
            stream.was_sent = True
        except OverloadedError as error:
            stream.fail(error)

    def _fail_streams(self, message: str) -> None:
        for stream in self._streams.values():
            stream.fail(EngineDeadError(message, retry_after=DEAD_RETRY_SECONDS))

    def _on_message(self, message: ToClient) -> None:
        if isinstance(message, Refused):
            stream = self._streams.get(message.request_id)
            if stream is not None:
                stream.fail(message.to_error())
        elif not isinstance(message, Hello | LoadFailed):
            self.stats = message.stats
            for delta in message.deltas:
                stream = self._streams.get(delta.request_id)
                if stream is not None:
                    stream.put(delta)
                    if stream is self._on_probation:
                        self._release()


class _Stream:
    """What has arrived for one request and was not taken yet: at most one merged delta per completion. And what another
    engine must know to go on with it.

    `name`: of the request in logs. `was_sent`: an engine has had it. `strikes`: engines that died computing it since its
    last token.
    """

    def __init__(self, request: Add, name: str) -> None:
        self.request = request
        self.name = name
        self.ended = False
        self.was_sent = False
        self.strikes = 0
        self._began = time.monotonic()
        self._received: dict[int, list[int]] = {index: [] for index in range(request.params.n)}
        self._pending: dict[int, Delta] = {}
        self._error: PenstockError | None = None
        self._arrived = asyncio.Event()

    def put(self, delta: Delta) -> None:
        self.strikes = 0
        if delta.finish_reason is not None:
            self.close(delta.index)
        elif delta.index in self._received:
            self._received[delta.index] += delta.token_ids
        before = self._pending.get(delta.index)
        if before is None:
            self._pending[delta.index] = delta
        else:
            before.token_ids += delta.token_ids
            if before.logprobs is not None and delta.logprobs is not None:
                before.logprobs += delta.logprobs
            before.finish_reason = delta.finish_reason
            before.stop_token_id = delta.stop_token_id
            before.error = delta.error
            before.retry_after = delta.retry_after
        self._arrived.set()

    def close(self, index: int) -> None:
        """This completion has ended."""
        self._received.pop(index, None)

    def resumption(self) -> Add:
        """What to tell another engine. Raises OverloadedError when the deadline has passed meanwhile."""
        waited = time.monotonic() - self._began
        urgency = self.request.urgency
        has_tokens = any(self._received.values()) or len(self._received) < self.request.params.n
        left = {
            "ttft_deadline": None if has_tokens else urgency.ttft_deadline,
            "deadline": urgency.deadline,
        }
        for name, seconds in left.items():
            if seconds is not None and seconds <= waited:
                raise OverloadedError(
                    f"The {name} of {seconds:g} s passed while the engine was started again.",
                    retry_after=DEAD_RETRY_SECONDS,
                )
        remaining = {name: None if seconds is None else seconds - waited for name, seconds in left.items()}
        return msgspec.structs.replace(
            self.request,
            urgency=Urgency(priority=urgency.priority, **remaining),
            resume=self._received if self.was_sent else None,
        )

    def fail(self, error: PenstockError) -> None:
        """No more will come, for this reason."""
        self.ended = True
        self._error = error
        self._arrived.set()

    async def take(self) -> list[Delta]:
        await self._arrived.wait()
        self._arrived.clear()
        deltas = list(self._pending.values())
        self._pending.clear()
        if self._error is not None and not deltas:
            raise self._error
        if self._error is not None:
            self._arrived.set()
        return deltas


class _Link(asyncio.Protocol):
    """The client's end of the socket."""

    def __init__(self, on_message: Callable[[ToClient], None], ready: "asyncio.Future[Hello]") -> None:
        self.closed = asyncio.Event()
        self._on_message = on_message
        self._ready = ready
        self._decoder: FrameDecoder[ToClient] = FrameDecoder(ToClient)
        self._transport: asyncio.Transport | None = None

    def send(self, message: ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            if isinstance(message, Hello) and not self._ready.done():
                self._ready.set_result(message)
            elif isinstance(message, LoadFailed) and not self._ready.done():
                self._ready.set_exception(ModelLoadError(message.message))
            else:
                self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        if not self._ready.done():
            self._ready.set_exception(ModelLoadError("The engine ended before its model was loaded."))
