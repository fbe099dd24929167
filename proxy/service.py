"""One generation, from prompt to chunks: cache, tokenizer, engine, and the cache again.

A question that nothing was kept for is searched for by its meaning while the engine computes already: what is found reaches
the engine as a draft, and what is not found costs no time. Those who ask for the same at the same time share one generation.

Knows no wire format.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Literal, TypeAlias

import msgspec

from ..cache import CacheKey, CompletionCache, WholePrompt
from ..cache.near import Mode, NearHits
from ..errors import ContextLengthError, EngineDeadError, PenstockError
from ..scheduler.outputs import Chunk
from ..scheduler.sampling_params import SamplingParams
from ..scheduler.urgency import LOWEST, ORDINARY, Urgency
from .backend import Backend
from .cache_scope import CacheScope
from .cascade.attempt import PLAIN, Attempt, Guess, NotKeptError
from .controls import CacheControls
from .flight import AtOnce, Flights, Source
from .keeping import Keeping
from .local_account import LocalAccount
from .merge import merged
from .metrics import Metrics
from .near_search import NearSearch, mode_of
from .observe.observation import Observation, Unobserved
from .observe.record import RequestRecord, excerpt_of_answer, excerpt_of_prompt
from .provenance import Provenance
from .settling import Settling
from .tenants.admission import Admission
from .tenants.rights import permitted_urgency
from .thought_tokens import ThoughtTokens
from .transcript import Transcript, replayed

# Encoding longer texts takes milliseconds, in which no other stream would move; they go to a thread.
LONG_TEXT = 16_384

Batches: TypeAlias = Source[list[Chunk]]
Draft: TypeAlias = list[int] | Awaitable[list[int] | None] | None


class Prompt(msgspec.Struct, frozen=True):
    """A prompt as text still to be encoded, or as the ids themselves."""

    text: str | None = None
    token_ids: list[int] | None = None
    add_special_tokens: bool = True


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one HTTP request asks of the model.

    `question`: the part of the prompt by whose meaning its answer may be found; None for none.
    `draft`: what the answer is likely to be; verified, so that it changes nothing but the time.
    `nothing`: a limit of 0 tokens, so that only the prompt is counted. `default_limit`: most tokens where
    `params` names no limit, cut to what the context has room for; None for all it has. `cut_limit`: that of `params` is
    cut so too, instead of being refused. `thoughts`: what their tokens are counted by; None where they are not.
    `whole`: what may be kept of the prompt; None where it is not one text or conversation. `attempt`: what it is within a
    learned route.
    """

    id: str
    admission: Admission
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    controls: CacheControls
    urgency: Urgency = ORDINARY
    question: str | None = None
    draft: str | None = None
    nothing: bool = False
    default_limit: int | None = None
    cut_limit: bool = False
    thoughts: ThoughtTokens | None = None
    whole: WholePrompt | None = None
    attempt: Attempt = PLAIN

    @property
    def tenant(self) -> str:
        return self.admission.tenant.name


class Head(msgspec.Struct, frozen=True):
    """What is known of a generation before its first chunk."""

    provenance: Provenance
    prompt_tokens: int
    prediction: list[int] | None = None


class Generation:
    """A job under way: iterate for batches of chunks; `transcript` has all that was iterated so far, `provenance` is
    final with the first batch.

    Closing it (or the iteration) aborts what still runs.
    """

    def __init__(
        self, provenance: Provenance, transcript: Transcript, batches: Batches, observation: Observation
    ) -> None:
        self.provenance = provenance
        self.transcript = transcript
        self._batches = batches
        self._observation = observation
        self._first: list[Chunk] | None = None

    async def begin(self) -> None:
        """Waits for the first batch: an error until then can still become an HTTP status."""
        self._observation.hand_over()
        try:
            self._first = await anext(self._batches)
        except PenstockError:
            self._observation.refused = True
            raise
        self._took(self._first)

    async def __aiter__(self) -> AsyncIterator[list[Chunk]]:
        if self._first is not None:
            yield self._first
        self._observation.wants_next()
        # The rest after the last finish_reason is the end of the generators: cache and accounts do their part.
        async for batch in self._batches:
            self._took(batch)
            yield batch
            self._observation.wants_next()
        self._observation.waited()

    async def aclose(self) -> None:
        try:
            await self._batches.aclose()
        finally:  # whoever closes may be cancelled meanwhile, as its client has left
            self._keep()

    def _keep(self) -> None:
        """Writes down what came, for the record of the request."""
        transcript, record = self.transcript, self._observation.record
        reasons = [choice.finish_reason for choice in transcript.choices if choice.finish_reason is not None]
        self._observation.close(whole=transcript.finished, finish_reasons=reasons)
        if self._first is not None:
            usage = transcript.usage
            record.used(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        if record.keeps_text:
            record.answer = excerpt_of_answer("".join(transcript.choices[0].texts))

    def _took(self, batch: list[Chunk]) -> None:
        self._observation.piece()
        for chunk in batch:
            if chunk.queue_seconds is not None:
                self._observation.queued(chunk.queue_seconds)
        self.transcript.add(batch)


class CompletionService:
    """Runs jobs.

    Args:
        backend: the model.
        cache: None when caching is off.
        near: None when only exact repeats are to be found.
        account: of what generations take.
        metrics: told of every job's times and outcome.
        speculation: as the engine's: where near hits are drafts.
        keeping: what the operator lets the cache keep; replaced when the settings file is read anew.
    """

    def __init__(
        self,
        backend: Backend,
        cache: CompletionCache | None,
        near: NearHits | None,
        metrics: Metrics,
        account: LocalAccount,
        *,
        keeping: Keeping,
        speculation: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._near = near
        self._settling = Settling()
        self._metrics = metrics
        self.account = account
        self._speculation = speculation
        self._flights: Flights[Head, list[Chunk]] = Flights(_size)
        self.keeping = keeping

    async def start(self, job: Job, record: RequestRecord) -> Generation:
        """A generation whose first chunks are there. `record`: of the request; what becomes of it is filled in.

        Raises InvalidRequestError, ContextLengthError, OverloadedError or EngineDeadError; NotKeptError and EscalatedError
        as the job's attempt wants it.
        """
        started = time.perf_counter()
        record.response_id = job.id
        if record.keeps_text and job.prompts[0].text is not None:
            record.prompt = excerpt_of_prompt(job.prompts[0].text)
        await self._backend.ready()
        urgency = permitted_urgency(job.admission.tenant, job.urgency)
        if job.attempt.unseen:
            urgency = Urgency(priority=LOWEST)
        params = job.params if job.attempt.trial is None else job.attempt.trial.params(job.params)
        asked, job = job, msgspec.structs.replace(job, urgency=urgency, params=params)
        scope = self._scope(job)
        key = None if scope is None else scope.key()
        if self._cache is not None and key is not None and job.controls.read:
            hit = self._cache.lookup(key)
            if hit is not None:
                head = Head(Provenance.of_hit(hit), hit.completion.prompt_tokens)
                kept = self.account.counted(job, head, AtOnce(replayed(hit.completion)))
                return await self._begun(asked, record, head, kept)
            # A prediction counts in the usage figures, and a deadline from its request's arrival: both are its client's own.
            may_share = job.controls.write and not job.draft and not job.urgency.has_deadline
            if may_share and not job.attempt.only_kept:
                return await self._shared(asked, job, record, started, scope, key)
        if job.attempt.only_kept:
            raise NotKeptError("Nothing was kept.")
        return await self._begun(asked, record, *await self._lead(job, record, started, scope, key))

    async def _shared(
        self,
        asked: Job,
        job: Job,
        record: RequestRecord,
        started: float,
        scope: CacheScope | None,
        key: CacheKey,
    ) -> Generation:
        """A place on the generation of whoever asked first, or a new one that others may join. It counts for the first,
        whoever leaves. `asked`: the job as its client sees it."""
        like = (key.place, key.digest, job.urgency, self._mode(job), job.controls.ttl, job.cut_limit)
        reader, first = self._flights.board(like, lambda: self._lead(job, record, started, scope, key))
        try:
            head = await reader.head()
            batches: Source[list[Chunk]] = reader
            if not first:
                head = msgspec.structs.replace(head, provenance=Provenance("shared"))
                batches = self.account.counted(job, head, reader)
            return await self._begun(asked, record, head, batches)
        except BaseException:
            await reader.aclose()
            raise

    async def _lead(
        self, job: Job, record: RequestRecord, started: float, scope: CacheScope | None, key: CacheKey | None
    ) -> tuple[Head, Batches]:
        """What was not kept, and what it takes is counted."""
        head, batches = await self._found(job, record.request_id, started, scope, key)
        return head, self.account.counted(job, head, batches)

    async def _found(
        self, job: Job, name: str, started: float, scope: CacheScope | None, key: CacheKey | None
    ) -> tuple[Head, Batches]:
        """What was not kept: computed, and kept now."""
        in_thread = sum(len(prompt.text or "") for prompt in job.prompts) >= LONG_TEXT
        encoded = [await self._encode(prompt, in_thread=in_thread) for prompt in job.prompts]
        prompt_tokens = sum(map(len, encoded))
        # Here already: a prompt of a million ids would keep the engine, and so all streams, busy before it is refused.
        self._check_length(encoded)
        if job.nothing:
            return Head(Provenance("bypass"), prompt_tokens), AtOnce(_nothing(job))
        prediction = guess = None
        if job.draft:
            in_thread = len(job.draft) >= LONG_TEXT
            prediction = await self._encode(
                Prompt(text=job.draft, add_special_tokens=False), in_thread=in_thread
            )
        elif job.attempt.guess is not None and job.params.drafters is None and self._may_draft:
            guess = await self._guess(job.attempt.guess)
        search = None if scope is None else self._search(job, scope)
        if search is not None and self._mode(job) == "trusted":
            neighbour = await search.trusted()
            if neighbour is not None:
                chunks = replayed(neighbour.completion, prompt_tokens=prompt_tokens)
                return Head(Provenance.of_trusted(neighbour), prompt_tokens), AtOnce(chunks)
        draft: Draft = prediction or guess
        if search is not None and not draft:
            draft = search.draft()
        head = Head(
            Provenance("miss" if key is not None and job.controls.read else "bypass"),
            prompt_tokens,
            prediction,
        )
        batches = self._computed(head.provenance, self._compute(job, name, encoded, draft), search)
        keep = key if job.controls.write else None
        if keep is not None or search is not None:
            batches = self._kept(job, started, _transcript(job, head), batches, keep, search)
        return head, batches

    def _search(self, job: Job, scope: CacheScope) -> NearSearch | None:
        """Looks for the completion of a question that means the same, while the engine computes already."""
        if self._near is None or not self._near.is_ready or self._mode(job) == "off":
            return None
        question = scope.question(self._near.fingerprint)
        if question is None:
            return None
        # Who brings a draft, or wants certain guesses only, needs no other; the question is embedded all the same.
        find = job.controls.read and not job.draft and job.params.drafters is None
        drafts = self._may_draft and job.attempt.guess is None  # which is for this very question
        machine_reads_it = job.params.grammar is not None
        return NearSearch(self._near, question, find=find, drafts=drafts, exact=machine_reads_it)

    @property
    def _may_draft(self) -> bool:
        """Where a near tie may depend on the batch, guessing is for those who ask for it: elsewhere it changes no letter."""
        exact = self._backend.engine.info.precision == "w8a8"
        return self._speculation == "on" or (self._speculation == "auto" and exact)

    def _mode(self, job: Job) -> Mode:
        return mode_of(
            self._near, job.controls.mode, job.admission.tenant, logprobs=job.params.logprobs is not None
        )

    async def _begun(self, job: Job, record: RequestRecord, head: Head, batches: Batches) -> Generation:
        """`job`: as its client sees it."""
        transcript = _transcript(job, head)
        trial = job.attempt.trial
        if trial is not None:
            batches = trial.judged(
                batches,
                prompt_tokens=head.prompt_tokens,
                tokenizer=self._backend.tokenizer.fingerprint,
                shown=job.params,
            )
        observe = Unobserved if job.attempt.unseen else Observation
        observation = observe(self._metrics, record, head.provenance)
        generation = Generation(head.provenance, transcript, batches, observation)
        try:
            await generation.begin()
        except BaseException:
            await generation.aclose()
            raise
        return generation

    async def _computed(self, provenance: Provenance, batches: Batches, search: NearSearch | None) -> Batches:
        """Passes batches on; before the first it is known whether there was a draft."""
        async with aclosing(batches):
            async for batch in batches:
                _raise_if_broken(batch)
                if search is not None:
                    await search.attribute(provenance)
                    search = None
                yield batch

    async def _kept(
        self,
        job: Job,
        started: float,
        transcript: Transcript,
        batches: Batches,
        key: CacheKey | None,
        search: NearSearch | None,
    ) -> Batches:
        """Passes batches on; at the end, and only when all of it came, keeps the completion and learns from it."""
        async with aclosing(batches):
            async for batch in batches:
                transcript.add(batch)
                yield batch
        completion = transcript.cacheable(engine_seconds=time.perf_counter() - started)
        prompt = None
        if key is not None and completion is not None:
            prompt = self.keeping.prompt(job.admission.tenant, lambda: job.whole)
        if search is not None:
            # The reply's end does not wait for it.
            settling = search.settle(key, completion, job.controls.ttl, self._metrics, prompt)
            self._settling.add(settling)
        elif key is not None and completion is not None and self._cache is not None:
            self._cache.store(key, completion, ttl=job.controls.ttl, prompt=prompt)

    def _compute(self, job: Job, name: str, encoded: list[list[int]], draft: Draft) -> Batches:
        n, engine = job.params.n, self._backend.engine
        if len(encoded) == 1:
            params = self._limited(job, encoded[0])
            source = engine.generate(
                encoded[0],
                params,
                request_id=name,
                tenant=job.tenant,
                draft_token_ids=draft,
                urgency=job.urgency,
                weight=job.admission.tenant.weight,
            )
            return _singly(source) if n == 1 else merged([source])
        sources = [
            _shifted(
                engine.generate(
                    token_ids,
                    self._limited(job, token_ids),
                    request_id=f"{name}-{place}",
                    tenant=job.tenant,
                    draft_token_ids=draft,
                    urgency=job.urgency,
                    weight=job.admission.tenant.weight,
                ),
                place * n,
            )
            for place, token_ids in enumerate(encoded)
        ]
        return merged(sources)

    def _limited(self, job: Job, token_ids: list[int]) -> SamplingParams:
        """The job's params; with a limit as far as the context has room, where it may be cut."""
        params = job.params
        wanted = job.default_limit
        if params.max_tokens is not None:
            wanted = params.max_tokens if job.cut_limit else None
        if wanted is None:
            return params
        room = self._backend.engine.info.max_model_len - len(token_ids)
        limit = max(1, params.min_tokens, min(wanted, room))
        return msgspec.structs.replace(params, max_tokens=limit)

    async def _encode(self, prompt: Prompt, *, in_thread: bool) -> list[int]:
        if prompt.token_ids is not None:
            return prompt.token_ids
        assert prompt.text is not None
        encode = self._backend.tokenizer.encode
        if not in_thread:
            return encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        return await asyncio.to_thread(encode, prompt.text, add_special_tokens=prompt.add_special_tokens)

    async def _guess(self, guess: Guess) -> list[int]:
        if guess.token_ids is not None and guess.tokenizer == self._backend.tokenizer.fingerprint:
            return guess.token_ids
        prompt = Prompt(text=guess.text, add_special_tokens=False)
        return await self._encode(prompt, in_thread=len(guess.text) >= LONG_TEXT)

    async def close(self) -> None:
        """Waits, not for long, for what is still to be kept of replies that have ended."""
        await self._settling.close()

    def _scope(self, job: Job) -> CacheScope | None:
        """None for what is never cached: answers that stand for a whole distribution, unless asked for, and what the
        operator excluded."""
        params, controls = job.params, job.controls
        if self._cache is None or job.nothing or not (controls.read or controls.write):
            return None
        if not (params.is_greedy or params.seed is not None or controls.sampled):
            return None
        if self.keeping.excludes(_asked(job)):
            return None
        return CacheScope(job, self._backend)

    def _check_length(self, encoded: list[list[int]]) -> None:
        limit = self._backend.engine.info.max_model_len
        for token_ids in encoded:
            if len(token_ids) > limit:
                raise ContextLengthError(
                    f"The prompt is {len(token_ids)} tokens long; this model reads at most {limit}. "
                    "Shorten it.",
                    param="prompt",
                )


def _transcript(job: Job, head: Head) -> Transcript:
    return Transcript(
        prompt_tokens=head.prompt_tokens,
        num_prompts=len(job.prompts),
        n=job.params.n,
        with_logprobs=job.params.logprobs is not None,
        prediction=head.prediction,
        thoughts=job.thoughts,
    )


def _size(batch: list[Chunk]) -> int:
    """Roughly, in bytes."""
    return 64 + sum(len(chunk.text) + 8 * len(chunk.token_ids) for chunk in batch)


def _asked(job: Job) -> list[str]:
    """The question; where there is not just one, all that is known as text."""
    if job.question is not None:
        return [job.question]
    return [prompt.text for prompt in job.prompts if prompt.text is not None]


async def _singly(source: AsyncGenerator[Chunk, None]) -> AsyncGenerator[list[Chunk], None]:
    async with aclosing(source):
        async for chunk in source:
            yield [chunk]


async def _shifted(source: AsyncGenerator[Chunk, None], by: int) -> AsyncGenerator[Chunk, None]:
    """One prompt's chunks, numbered among the choices of all prompts."""
    async with aclosing(source):
        async for chunk in source:
            chunk.index += by
            yield chunk


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
