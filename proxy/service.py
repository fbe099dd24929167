"""One generation, from prompt to chunks: cache, tokenizer, engine, and the cache again.

Knows no wire format.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec

from ..cache import CacheKey, CompletionCache, completion_key
from ..errors import ContextLengthError, EngineDeadError, PenstockError
from ..scheduler.outputs import Chunk
from ..scheduler.sampling_params import SamplingParams
from ..scheduler.urgency import ORDINARY, Urgency
from .backend import Backend
from .controls import CacheControls
from .merge import merged
from .metrics import Metrics
from .transcript import Transcript, replayed

HIT, MISS, BYPASS = "hit", "miss", "bypass"
# Encoding longer texts takes milliseconds, in which no other stream would move; they go to a thread.
LONG_TEXT = 16_384

Batches = AsyncGenerator[list[Chunk], None]


class Prompt(msgspec.Struct, frozen=True):
    """A prompt as text still to be encoded, or as the ids themselves."""

    text: str | None = None
    token_ids: list[int] | None = None
    add_special_tokens: bool = True


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one HTTP request asks of the model.

    `draft`: what the answer is likely to be; verified, so that it changes nothing but the time.
    `nothing`: a limit of 0 tokens, so that only the prompt is counted. `default_limit`: most tokens where
    `params` names no limit, cut to what the context has room for; None for all it has.
    """

    id: str
    tenant: str
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    controls: CacheControls
    urgency: Urgency = ORDINARY
    draft: str | None = None
    nothing: bool = False
    default_limit: int | None = None


class Generation:
    """A job under way: iterate for batches of chunks; `transcript` has all that was iterated so far.

    Closing it (or the iteration) aborts what still runs.
    """

    def __init__(self, outcome: str, transcript: Transcript, batches: Batches) -> None:
        self.outcome = outcome
        self.transcript = transcript
        self._batches = batches
        self._first: list[Chunk] | None = None

    async def begin(self) -> None:
        """Waits for the first batch: an error until then can still become an HTTP status."""
        self._first = await anext(self._batches)
        self.transcript.add(self._first)

    async def __aiter__(self) -> AsyncIterator[list[Chunk]]:
        if self._first is not None:
            yield self._first
        # The rest after the last finish_reason is the end of the generators: the cache and the metrics do
        # their part.
        async for batch in self._batches:
            self.transcript.add(batch)
            yield batch

    async def aclose(self) -> None:
        await self._batches.aclose()


class CompletionService:
    """Runs jobs.

    Args:
        backend: the model.
        cache: None when caching is off.
        metrics: told of every job's times and outcome.
    """

    def __init__(self, backend: Backend, cache: CompletionCache | None, metrics: Metrics) -> None:
        self._backend = backend
        self._cache = cache
        self._metrics = metrics

    async def start(self, job: Job) -> Generation:
        """A generation whose first chunks are there.

        Raises InvalidRequestError, ContextLengthError, OverloadedError or EngineDeadError.
        """
        started = time.perf_counter()
        await self._backend.ready()
        key = self._key(job)
        if self._cache is not None and key is not None and job.controls.read:
            hit = self._cache.lookup(key)
            if hit is not None:
                return await self._begun(
                    job, started, HIT, hit.completion.prompt_tokens, _at_once(replayed(hit.completion))
                )
        in_thread = sum(len(prompt.text or "") for prompt in job.prompts) >= LONG_TEXT
        encoded = [await self._encode(prompt, in_thread=in_thread) for prompt in job.prompts]
        prompt_tokens = sum(map(len, encoded))
        # Here already: a prompt of a million ids would keep the engine, and so all streams, busy before it is refused.
        self._check_length(encoded)
        if job.nothing:
            return await self._begun(job, started, BYPASS, prompt_tokens, _at_once(_nothing(job)))
        draft = None
        if job.draft:
            in_thread = len(job.draft) >= LONG_TEXT
            draft = await self._encode(Prompt(text=job.draft, add_special_tokens=False), in_thread=in_thread)
        outcome = MISS if key is not None and job.controls.read else BYPASS
        keep = key if job.controls.write else None
        return await self._begun(
            job, started, outcome, prompt_tokens, self._compute(job, encoded, draft), keep, draft
        )

    async def _begun(
        self,
        job: Job,
        started: float,
        outcome: str,
        prompt_tokens: int,
        batches: Batches,
        keep: CacheKey | None = None,
        prediction: list[int] | None = None,
    ) -> Generation:
        transcript = Transcript(
            prompt_tokens=prompt_tokens,
            num_prompts=len(job.prompts),
            n=job.params.n,
            with_logprobs=job.params.logprobs is not None,
            prediction=prediction,
        )
        generation = Generation(
            outcome, transcript, self._settled(job, started, outcome, transcript, batches, keep)
        )
        try:
            await generation.begin()
        except BaseException:
            await generation.aclose()
            raise
        return generation

    async def _settled(
        self,
        job: Job,
        started: float,
        outcome: str,
        transcript: Transcript,
        batches: Batches,
        keep: CacheKey | None,
    ) -> Batches:
        """Passes batches on; at the end, and only when all of it came, keeps the completion."""
        observed = self._metrics.observe(outcome, started)
        with observed:
            async with aclosing(batches):
                async for batch in batches:
                    _raise_if_broken(batch)
                    observed.batch(batch)
                    yield batch
            observed.finished(transcript)
        if keep is not None and self._cache is not None:
            completion = transcript.cacheable(engine_seconds=time.perf_counter() - started)
            if completion is not None:
                self._cache.store(keep, completion, ttl=job.controls.ttl)

    def _compute(self, job: Job, encoded: list[list[int]], draft: list[int] | None) -> Batches:
        n, engine = job.params.n, self._backend.engine
        if len(encoded) == 1:
            params = self._limited(job, encoded[0])
            source = engine.generate(
                encoded[0],
                params,
                request_id=job.id,
                tenant=job.tenant,
                draft_token_ids=draft,
                urgency=job.urgency,
            )
            return _singly(source) if n == 1 else merged([source])
        sources = [
            _shifted(
                engine.generate(
                    token_ids,
                    self._limited(job, token_ids),
                    request_id=f"{job.id}-{place}",
                    tenant=job.tenant,
                    draft_token_ids=draft,
                    urgency=job.urgency,
                ),
                place * n,
            )
            for place, token_ids in enumerate(encoded)
        ]
        return merged(sources)

    def _limited(self, job: Job, token_ids: list[int]) -> SamplingParams:
        """The job's params; where it names no limit, with the default one, as far as the context has room."""
        params = job.params
        if params.max_tokens is not None or job.default_limit is None:
            return params
        room = self._backend.engine.info.max_model_len - len(token_ids)
        limit = max(1, params.min_tokens, min(job.default_limit, room))
        return msgspec.structs.replace(params, max_tokens=limit)

    async def _encode(self, prompt: Prompt, *, in_thread: bool) -> list[int]:
        if prompt.token_ids is not None:
            return prompt.token_ids
        assert prompt.text is not None
        encode = self._backend.tokenizer.encode
        if not in_thread:
            return encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        return await asyncio.to_thread(encode, prompt.text, add_special_tokens=prompt.add_special_tokens)

    def _key(self, job: Job) -> CacheKey | None:
        """None for what is never cached: answers that stand for a whole distribution, unless asked for."""
        params, controls = job.params, job.controls
        if self._cache is None or job.nothing or not (controls.read or controls.write):
            return None
        if not (params.is_greedy or params.seed is not None or controls.sampled):
            return None
        asked = msgspec.to_builtins(params)
        if params.max_tokens is None:
            asked["default_limit"] = job.default_limit
        del asked["drafters"]  # they change no output
        adapter = asked.pop("adapter")  # what it is counts, not what it is called
        if params.is_greedy:
            asked["seed"] = None  # decides nothing, so that it must not part equal requests
        info = self._backend.engine.info
        fingerprint = f"{info.fingerprint}:{self._backend.tokenizer.fingerprint}:{info.max_model_len}"
        if adapter is not None:
            fingerprint += f":{info.adapters[adapter]}"
        return completion_key(
            tenant=job.tenant,
            namespace=controls.namespace,
            model=info.name,
            fingerprint=fingerprint,
            request={"prompts": msgspec.to_builtins(job.prompts), "params": asked},
        )

    def _check_length(self, encoded: list[list[int]]) -> None:
        limit = self._backend.engine.info.max_model_len
        for token_ids in encoded:
            if len(token_ids) > limit:
                raise ContextLengthError(
                    f"The prompt is {len(token_ids)} tokens long; this model reads at most {limit}. "
                    "Shorten it.",
                    param="prompt",
                )


async def _singly(source: AsyncGenerator[Chunk, None]) -> Batches:
    async with aclosing(source):
        async for chunk in source:
            yield [chunk]


async def _shifted(source: AsyncGenerator[Chunk, None], by: int) -> AsyncGenerator[Chunk, None]:
    """One prompt's chunks, numbered among the choices of all prompts."""
    async with aclosing(source):
        async for chunk in source:
            chunk.index += by
            yield chunk


async def _at_once(chunks: list[Chunk]) -> Batches:
    yield chunks


def _nothing(job: Job) -> list[Chunk]:
    return [
        Chunk(index=index, text="", token_ids=[], finish_reason="length")
        for index in range(len(job.prompts) * job.params.n)
    ]


def _raise_if_broken(batch: list[Chunk]) -> None:
    """An accepted request that the engine gave up is an error, never dressed up as complete."""
    for chunk in batch:
        if chunk.finish_reason == "abort":
            raise EngineDeadError("The server is stopping; send the request again.", retry_after=1.0)
        if chunk.finish_reason == "error":
            raise PenstockError(
                "The engine failed while computing this completion; it is no fault of the request."
            )
