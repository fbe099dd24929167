"""The engine: schedule, execute, settle. Single-threaded, token ids in and out.

engine = Engine(EngineConfig(model="builtin"))
results = engine.generate(["how do I list files?"], SamplingParams(temperature=0))
"""

import logging
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from itertools import zip_longest

import msgspec
import torch

from ..config import SparseAttention
from ..errors import InvalidRequestError, ModelLoadError, OverloadedError, PenstockError
from ..kernels.dispatch import Backend, describe
from ..models.loading import load_model
from ..models.location import BUILTIN_FOLDERS
from .block_manager import BlockManager
from .detokenizer import Detokenizer, TextTokenizer
from .draft_model import DraftModel, load_draft_model
from .draft_plan import DraftPlanner
from .drafters import CompletionDraft, DrafterName, PromptLookup
from .engine_config import EngineConfig
from .forecast import Forecast
from .matcher import ForcedTokens, GrammarCompiler, Matcher
from .model_runner import Launch, ModelRunner, kv_dtype_of
from .outputs import (
    Completion,
    Delta,
    EngineStats,
    FinishReason,
    GenerationResult,
    ModelInfo,
    SparseStats,
)
from .request_checks import check_draft, check_request
from .sampler import SampledToken, needs_tokens
from .sampling_params import SamplingParams, checked_token_ids
from .scheduler import ScheduledSequence, Scheduler, SchedulerOutput
from .sequence import Sequence, Status
from .speculation import Guesser, ModelGuesser, Speculation, Speculator
from .step_times import StepTimes
from .tenant_shares import TenantShares
from .urgency import ORDINARY, Urgency

log = logging.getLogger(__name__)

QUEUE_FULL_RETRY_SECONDS = 1.0
LEAST_RETRY_SECONDS = 0.1
# How long a step waits for a grammar when there is nothing else to do.
COMPILE_POLL_SECONDS = 0.005
# Between the seeds of one request's completions: odd and large, so that no two seeds in use come out equal.
SEED_STEP = 0x9E3779B97F4A7C15


class Engine:
    """Loads one model and generates with continuous batching.

    Raises ModelLoadError when the model cannot be served, naming the reason and the remedy.
    """

    def __init__(self, config: EngineConfig) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        model = load_model(
            config.model,
            dtype=config.dtype,
            quantize=config.quantize,
            kv_cache_dtype=config.kv_cache_dtype,
            device=config.device,
            adapters=config.adapters,
        )
        if config.max_model_len is not None and config.max_model_len > model.max_model_len:
            raise ModelLoadError(
                f"max_model_len is {config.max_model_len}, but {model.path.name} takes at most "
                f"{model.max_model_len} tokens; lower it, or leave it out."
            )
        self.max_model_len = config.max_model_len or model.max_model_len
        beside = load_draft_model(config, model)
        self.runner = ModelRunner(model, config, self.max_model_len, beside)
        self.block_manager = BlockManager(
            self.runner.num_blocks, self.runner.block_size, prefix_caching=config.prefix_caching
        )
        self.step_times = StepTimes()
        self.decode_times = StepTimes()
        self.prompt_times = StepTimes()
        self._overlaps = _overlaps(config, self.runner.backend)
        self.draft_model: DraftModel | None = None
        planner = None
        if beside is not None:
            self.draft_model = DraftModel(
                beside,
                model,
                num_blocks=self.runner.num_blocks,
                block_size=self.runner.block_size,
                kv_dtype=kv_dtype_of(beside),
                config=config,
            )
            planner = DraftPlanner(
                self.step_times,
                self.draft_model.times,
                max_model_len=beside.max_model_len,
                max_rows=config.max_num_batched_tokens,
            )
        self.speculator = Speculator(self.step_times, planner)
        self.scheduler = Scheduler(
            self.block_manager,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            times=self.step_times,
            decode_times=self.decode_times,
            prompt_times=self.prompt_times,
            shares=TenantShares(config.tenant_weights),
            speculator=self.speculator,
            trust_max_tokens=config.trust_max_tokens,
        )
        self.info = ModelInfo(
            name=config.model if config.model in BUILTIN_FOLDERS else model.path.name,
            path=str(model.path),
            architecture=model.architecture,
            fingerprint=_fingerprint(model.fingerprint, config),
            max_model_len=self.max_model_len,
            vocab_size=model.vocab_size,
            eos_token_ids=model.eos_token_ids,
            dtype=str(model.dtype).removeprefix("torch."),
            precision=model.precision,
            num_parameters=model.num_parameters,
            kv_blocks_total=self.block_manager.num_usable_blocks,
            block_size=self.runner.block_size,
            device=model.backend.device.type,
            kernels=describe(model.backend, model.precision, model.fused, model.experts, model.linears),
            draft_model=""
            if self.draft_model is None
            else self.draft_model.describe(self.runner.kv_bytes_per_token),
            hidden_size=model.hidden_size,
            adapters=model.adapters.fingerprints,
        )
        self.clock = time.monotonic
        # Told just before a step is computed of all that is then under way.
        self.on_schedule: Callable[[list[ScheduledSequence]], None] = lambda scheduled: None
        self._under_way: _Step | None = None
        self._last_end = 0.0
        self._forecast = Forecast(self.scheduler, self.step_times)
        self._live: dict[str, list[Sequence]] = {}
        self._with_deadline: dict[Sequence, None] = {}
        self._grammars = GrammarCompiler(model.path, model.vocab_size, model.eos_token_ids)
        self._compiling: dict[str, Future[Matcher]] = {}
        self._refused: list[tuple[str, PenstockError]] = []
        self._steps = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        tenant: str = "default",
        draft_token_ids: list[int] | None = None,
        urgency: Urgency = ORDINARY,
        weight: float = 1.0,
        resume: dict[int, list[int]] | None = None,
    ) -> None:
        """Queue `params.n` completions of one prompt.

        `draft_token_ids`: a completion that the model is likely to give, as that of a similar prompt. Its tokens are
        verified many at a time; the output is the same as without.

        `weight`: the tenant's share, where several want more than there is, from now on; `tenant_weights` of the
        configuration stand above it.

        `resume`: only these completions, by index, which another engine began: each goes on behind the output tokens given
        for it, as it would have gone on there. They were accepted once and are not refused for want of room.

        Raises InvalidRequestError, ContextLengthError or OverloadedError before anything is queued; the last also for a
        deadline of `urgency` that cannot be met.
        """
        self._check(request_id, prompt_token_ids, params, draft_token_ids)
        if resume is None:
            self._refuse_overload(params.n)
            self._refuse_hopeless(len(prompt_token_ids), params, tenant, urgency)
        room = self.max_model_len - len(prompt_token_ids)
        stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_token_ids |= frozenset(self.info.eos_token_ids)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        arrived = self.clock()
        seqs = [
            Sequence(
                request_id,
                index,
                prompt_token_ids,
                params,
                max_tokens=room if params.max_tokens is None else params.max_tokens,
                # Related seeds give unrelated noise: the seed is mixed before use. Steps of 1 would make the second
                # completion of one seed the first of the next.
                seed=seed + index * SEED_STEP,
                stop_token_ids=stop_token_ids,
                tenant=tenant,
                weight=weight,
                sparse_attention=self._sparse_attention(params),
                adapter=self.info.adapters.get(params.adapter) if params.adapter else None,
                speculation=self._speculation(params, len(prompt_token_ids), draft_token_ids),
                urgency=urgency,
                arrived=arrived,
            )
            for index in (range(params.n) if resume is None else resume)
        ]
        self._live[request_id] = seqs
        for seq in seqs:
            if resume is not None:
                seq.token_ids += resume[seq.index]
            if seq.first_token_due is not None:
                self._with_deadline[seq] = None
        if params.grammar is None:
            for seq in seqs:
                self.scheduler.add(seq)
        else:
            for seq in seqs:
                self.scheduler.hold(seq)
            self._compiling[request_id] = self._grammars.compile(params.grammar)

    def suggest(self, request_id: str, token_ids: list[int]) -> None:
        """Give a live request a draft after all, instead of `draft_token_ids` of `add_request` or of an earlier suggestion.

        Outputs may have begun: each is looked for in the draft, and from the next step on what follows there is verified.
        Unknown or finished ids are fine.

        Raises InvalidRequestError for token ids that the model does not have.
        """
        token_ids = checked_token_ids(token_ids, "draft_token_ids")
        check_draft(self.info, token_ids)
        for seq in self._live.get(request_id, ()):
            if seq.speculation is None:
                seq.speculation = self._speculation(seq.params, seq.num_prompt_tokens, token_ids)
            else:
                seq.speculation.suggest(CompletionDraft(token_ids, seq.num_prompt_tokens))

    def abort(self, request_id: str) -> None:
        """End a request and free its blocks at once; unknown or finished ids are fine."""
        self._compiling.pop(request_id, None)
        for seq in self._live.pop(request_id, ()):
            if seq.status is not Status.FINISHED:
                self._end(seq, "abort")

    def is_live(self, request_id: str) -> bool:
        """Whether any completion of the request is still to be computed."""
        return request_id in self._live

    def has_work(self) -> bool:
        return self.scheduler.has_work() or bool(self._compiling) or self._under_way is not None

    def take_refused(self) -> list[tuple[str, PenstockError]]:
        """Requests that turned out to be wrong after they were queued: a grammar that does not compile. Each once."""
        refused, self._refused = self._refused, []
        return refused

    def step(self) -> list[Delta]:
        """Have one batch computed; returns what was added to which sequence, and which sequences were ended as too late.

        What a step adds is returned by the next call where its tokens need not be known to schedule the next step.
        """
        if self._compiling:
            self._admit_compiled()
        deltas = self._end_late() if self._with_deadline else []
        output = self.scheduler.schedule()
        before, self._under_way = self._under_way, None
        step = self._launch(output, before) if output.scheduled else None
        # Results of a sequence that has ended since are dropped. Its blocks may be another's already: that one's step is
        # computed after this one, so it is safe to hand them out at once.
        if before is not None:
            deltas += self._settle(before)
        if step is not None and step.may_wait:
            self._under_way = step
        elif step is not None:
            deltas += self._settle(step)
        return deltas

    @property
    def stats(self) -> EngineStats:
        manager = self.block_manager
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            kv_blocks_used=manager.num_used_blocks,
            kv_blocks_total=manager.num_usable_blocks,
            prefix_queries=manager.prefix_queries,
            prefix_hits=manager.prefix_hits,
            preemptions=self.scheduler.num_preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            sparse=SparseStats(**asdict(self.runner.kv_cache.sparse_telemetry)),
            drafters=self.speculator.stats,
        )

    def check(self) -> None:
        """Assert the engine's invariants; for tests and debugging."""
        self.scheduler.check()
        live = [seq for seqs in self._live.values() for seq in seqs if seq.status is not Status.FINISHED]
        scheduler = self.scheduler
        queued = [*scheduler.held, *scheduler.waiting, *scheduler.running]
        assert {id(seq) for seq in live} == {id(seq) for seq in queued}, "a sequence is lost"
        assert {seq.request_id for seq in scheduler.held} == set(self._compiling)

    def _sparse_attention(self, params: SamplingParams) -> SparseAttention | None:
        """Of one request: its own, else the engine's; None for dense, which all of the mass is too."""
        asked = self.config.sparse_attention if params.sparse_attention is None else params.sparse_attention
        if not isinstance(asked, SparseAttention):
            return None
        if asked.prompt_mass == 1:
            asked = msgspec.structs.replace(asked, prompt_mass=None)
        return None if asked.mass == 1 and asked.prompt_mass is None else asked

    def _speculation(
        self, params: SamplingParams, num_prompt_tokens: int, draft_token_ids: list[int] | None
    ) -> Speculation | None:
        """Who guesses for one completion: the draft that came with it first."""
        guessers = [Guesser(CompletionDraft(draft_token_ids, num_prompt_tokens))] if draft_token_ids else []
        if self._may_guess(params, "ngram"):
            guessers.append(Guesser(PromptLookup()))
        model = ModelGuesser() if self.draft_model and self._may_guess(params, "draft_model") else None
        forced = params.grammar is not None and self._may_guess(params, "grammar")
        if not (guessers or forced or model):
            return None
        after_prompt = self.runner.backend.kind == "triton" or self._sparse_attention(params) is not None
        return Speculation(guessers, after_prompt, model)

    def _may_guess(self, params: SamplingParams, drafter: DrafterName) -> bool:
        if params.drafters is not None:
            return drafter in params.drafters
        # Where a row's last bits depend on its batch, so would a near tie: there only who asks for guesses gets them.
        exact = self.info.precision == "w8a8"
        asked = self.config.speculation == "on" or drafter == "draft_model"
        return asked or (self.config.speculation == "auto" and exact)

    def _check(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        draft_token_ids: list[int] | None = None,
    ) -> None:
        if request_id in self._live:
            raise InvalidRequestError(f"request id {request_id!r} is already live; choose another.")
        check_request(self.config, self.info, prompt_token_ids, params, draft_token_ids or [])

    def _refuse_overload(self, n: int) -> None:
        waiting = len(self.scheduler.waiting)
        if waiting + n > self.config.max_waiting:
            raise OverloadedError(
                f"{waiting} sequences are waiting, the limit is {self.config.max_waiting}; try again later.",
                retry_after=QUEUE_FULL_RETRY_SECONDS,
            )

    def _launch(self, output: SchedulerOutput, before: "_Step | None") -> "_Step":
        self.on_schedule([*(before.scheduled if before else ()), *output.scheduled])
        begun = now = self.clock()
        for item in output.scheduled:
            if item.seq.queue_seconds is None:
                item.seq.queue_seconds = now - item.seq.arrived
        if self.draft_model is not None and output.drafting:
            self.draft_model.guess(output.drafting, self.clock)
            for rows in output.drafting:
                self.block_manager.mark_draft_computed(rows.seq, rows.stop - rows.start)
            now = self.clock()
        may_wait = self._overlaps and not self._needs_tokens(output)
        launch = self.runner.execute(output, before.launch if before else None)
        step = _Step(output.scheduled, launch, may_wait, begun, now, output.num_tokens, output.num_keys)
        if not may_wait:
            launch.drawn()
        self._steps += 1
        for item in output.scheduled:
            # Of the tokens being computed, those of the prompt; the rest are outputs being fed back.
            prompt_left = item.seq.num_prompt_tokens - item.start
            self._prompt_tokens += max(0, min(item.num_new_tokens, prompt_left))
            self.scheduler.advance(item)
        return step

    def _needs_tokens(self, output: SchedulerOutput) -> bool:
        """Whether the step after `output` cannot be scheduled, or not well, before its tokens are known."""
        due = [item for item in output.scheduled if item.samples]
        if any(item.draft or needs_tokens(item.seq) for item in due):
            return True
        num_tokens = output.num_tokens
        return any(self._foresees_draft(item.seq, num_tokens, len(due)) for item in due if item.is_ahead)

    def _foresees_draft(self, seq: Sequence, num_tokens: int, num_seqs: int) -> bool:
        speculation, limit = seq.speculation, seq.max_tokens - seq.num_output_tokens
        if speculation is None or limit < 1:
            return False
        unknown = seq.token_ids.pop()
        found = self.speculator.foresees(
            speculation, seq.token_ids, limit=limit, num_tokens=num_tokens, num_seqs=num_seqs
        )
        seq.token_ids.append(unknown)
        return found

    def _settle(self, step: "_Step") -> list[Delta]:
        """Wait for the end of a step, and give its tokens to whom they belong."""
        sampled = step.launch.tokens()
        now = self.clock()
        planner = self.speculator.planner
        if planner is None or not planner.has_cooled:
            # A step begins when it is launched and the one before is over.
            took = now - max(step.launched, self._last_end)
            self.step_times.record(step.num_tokens, took, step.num_keys)
            is_decode = step.scheduled[-1].num_new_tokens == 1  # these come first
            of_its_kind = self.decode_times if is_decode else self.prompt_times
            of_its_kind.record(step.num_tokens, took, step.num_keys)
        self._last_end = now
        deltas = [self._append(item, tokens) for item, tokens in sampled if not item.is_stale]
        if planner is not None:
            planner.settle(now - step.begun)
        return deltas

    def _append(self, item: ScheduledSequence, tokens: list[SampledToken | None]) -> Delta:
        """Append what was sampled, as far as the draft that it was sampled behind was right."""
        seq = item.seq
        new: list[SampledToken] = []
        reason: FinishReason | None = None
        error: str | None = None
        for token, guess in zip_longest(tokens, item.draft):
            if token is None:
                reason = "error"
                error = (
                    "The model gave no finite logits for this sequence; its weights are broken, or its numbers overflow "
                    "in this dtype (try float32)."
                )
                break
            new.append(token)
            if seq.matcher is not None:
                seq.matcher.advance([token.token_id])
                if seq.matcher.failure:
                    reason, error = (
                        "error",
                        f"The grammar cannot be followed: {seq.matcher.failure}. Simplify it.",
                    )
                    break
            if token.token_id in seq.stop_token_ids or (seq.matcher is not None and seq.matcher.is_complete):
                reason = "stop"
            elif item.stop + len(new) - seq.num_prompt_tokens >= seq.max_tokens:
                reason = "length"
            if reason or token.token_id != guess:
                break
        seq.token_ids[item.stop : item.stop + 1] = [token.token_id for token in new]
        num_accepted = max(0, len(new) - 1)
        if seq.speculation is not None and seq.speculation.source is not None:
            self._learn(seq, seq.speculation, new)
        if reason == "error":
            # Nobody may find KV that holds NaN. (Blocks that are shared and sound stay as they are: others read them.)
            self.block_manager.forget(self.runner.kv_cache.broken_blocks(seq.block_table))
        elif num_accepted:
            self.block_manager.mark_computed(seq, num_accepted)
        elif item.is_ahead:
            self.block_manager.make_findable(seq, item.start, item.stop)
        self._generation_tokens += len(new)
        if reason:
            self._finish(seq, reason)
        return Delta(
            seq.request_id,
            seq.index,
            [token.token_id for token in new],
            logprobs=None
            if seq.params.logprobs is None
            else [token.logprob for token in new if token.logprob],
            finish_reason=reason,
            # (A grammar may end with a token of the text.)
            stop_token_id=new[-1].token_id if new and new[-1].token_id in seq.stop_token_ids else None,
            num_cached_tokens=seq.num_cached_tokens,
            error=error,
            param=seq.params.grammar.field if seq.params.grammar and new and reason == "error" else None,
            queue_seconds=seq.queue_seconds if item.stop == seq.num_prompt_tokens else None,
            hidden_state=new[0].hidden_state if new else None,
        )

    def _learn(self, seq: Sequence, speculation: Speculation, new: list[SampledToken]) -> None:
        """From what became of a draft."""
        right = [token.token_id == guess for token, guess in zip(new, speculation.draft, strict=False)]
        num_right = right.index(False) if False in right else len(right)
        self.block_manager.mark_draft_computed(seq, speculation.num_computed(num_right))
        self.speculator.settle(speculation, num_right, len(new))

    def _refuse_hopeless(
        self, num_prompt_tokens: int, params: SamplingParams, tenant: str, urgency: Urgency
    ) -> None:
        if urgency.ttft_deadline is None and urgency.deadline is None:
            return
        first = self._forecast.first_token(tenant, urgency.priority, num_prompt_tokens)
        if first is None:
            return
        last = first + self._forecast.next_tokens((params.max_tokens or 1) - 1)
        for name, expected, limit in (
            ("first token", first, urgency.ttft_deadline),
            ("last token", last, urgency.deadline),
        ):
            if limit is not None and expected > limit:
                raise OverloadedError(
                    f"The {name} is expected in {expected:.2f} s, its deadline is {limit:g} s; "
                    "try again later, ask for less, or leave more time.",
                    retry_after=max(LEAST_RETRY_SECONDS, expected - limit),
                )

    def _end_late(self) -> list[Delta]:
        """End the sequences whose deadline has passed: nobody waits for their tokens any more."""
        now = self.clock()
        late = []
        for seq in list(self._with_deadline):
            urgency, waited = seq.urgency, now - seq.arrived
            limit = urgency.deadline
            if not seq.num_output_tokens and urgency.ttft_deadline is not None:
                limit = min(urgency.ttft_deadline, limit or urgency.ttft_deadline)
            if limit is None or waited <= limit:
                continue
            self._finish(seq, "error")
            late.append(
                Delta(
                    seq.request_id,
                    seq.index,
                    [],
                    finish_reason="error",
                    error=f"The deadline of {limit:g} s has passed after {seq.num_output_tokens} tokens.",
                    retry_after=LEAST_RETRY_SECONDS,
                )
            )
        return late

    def _admit_compiled(self) -> None:
        """Queue the sequences whose grammars are compiled. With nothing else to do, wait for one a moment."""
        if not self.scheduler.has_work():
            wait(self._compiling.values(), COMPILE_POLL_SECONDS, FIRST_COMPLETED)
        for request_id, future in list(self._compiling.items()):
            if not future.done():
                continue
            del self._compiling[request_id]
            seqs = [seq for seq in self._live[request_id] if seq.status is not Status.FINISHED]
            try:
                matcher = future.result()
            except PenstockError as error:
                self._refused.append((request_id, error))
                for seq in seqs:
                    self._finish(seq, "error")
                continue
            assert seqs[0].params.grammar is not None
            self._grammars.keep(seqs[0].params.grammar, matcher)
            for seq in seqs:
                seq.matcher = matcher.copy()
                seq.matcher.advance(seq.token_ids[seq.num_prompt_tokens :])
                if seq.speculation is not None and self._may_guess(seq.params, "grammar"):
                    seq.speculation.guessers.insert(0, Guesser(ForcedTokens(seq.matcher)))
                self.scheduler.add(seq)

    def _end(self, seq: Sequence, reason: FinishReason) -> None:
        was_running = seq.status is Status.RUNNING
        self.scheduler.finish(seq, reason)
        if self.speculator.planner is not None:
            self.speculator.planner.ended(seq.num_output_tokens)
        self._with_deadline.pop(seq, None)
        if was_running:
            self._forecast.ended(self.clock())
        if not self.scheduler.has_work():
            self._forecast.idle()

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        self._end(seq, reason)
        seqs = self._live[seq.request_id]
        if all(other.status is Status.FINISHED for other in seqs):
            del self._live[seq.request_id]
            self._compiling.pop(seq.request_id, None)

    def generate(
        self,
        prompts: Seq[str | list[int]],
        params: SamplingParams | Seq[SamplingParams],
        *,
        tokenizer: TextTokenizer | None = None,
        progress: bool = True,
    ) -> list[GenerationResult]:
        """Complete all prompts and return the results in their order.

        Args:
            prompts: texts or lists of token ids.
            params: for all prompts, or one each.
            tokenizer: loaded from the model's folder when not given; texts and stop strings need it.
            progress: show a progress bar on stderr.

        Raises InvalidRequestError or ContextLengthError before anything is computed; also while requests of
        `add_request` are live, whose tokens would be lost here.
        """
        if isinstance(prompts, str):
            raise InvalidRequestError("prompts is a text; give a list of prompts: [text].", param="prompt")
        if self._live:
            raise InvalidRequestError(
                f"{len(self._live)} requests are live; step them to their end, or abort them, before generate()."
            )
        from tqdm import tqdm

        if tokenizer is None:
            from ..models.tokenizer import Tokenizer

            tokenizer = Tokenizer.load(self.config.model)
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise InvalidRequestError(
                f"{len(prompts)} prompts but {len(each)} params; give one, or one each."
            )
        prefix = secrets.token_hex(4)
        results: list[GenerationResult] = []
        pending: dict[tuple[str, int], tuple[Detokenizer, Completion]] = {}
        queue = []
        for number, (prompt, prompt_params) in enumerate(zip(prompts, each, strict=True)):
            token_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            request_id = f"{prefix}-{number}"
            self._check(request_id, token_ids, prompt_params)
            completions = [Completion(index, "", [], "abort") for index in range(prompt_params.n)]
            for completion in completions:
                if prompt_params.logprobs is not None:
                    completion.logprobs = []
                pending[request_id, completion.index] = (
                    Detokenizer(tokenizer, prompt_params),
                    completion,
                )
            results.append(GenerationResult(token_ids, completions))
            queue.append((request_id, token_ids, prompt_params))
        queue.reverse()
        with tqdm(total=len(prompts), unit="prompt", disable=not progress) as bar:
            try:
                while pending:
                    while queue and self._has_place(queue[-1][2].n):
                        self.add_request(*queue.pop())
                    deltas = self.step()
                    for _, error in self.take_refused():
                        raise error
                    for delta in deltas:
                        self._collect(delta, pending)
                        number = int(delta.request_id.rpartition("-")[2])
                        results[number].num_cached_tokens = delta.num_cached_tokens
                    bar.update(len(prompts) - len({request_id for request_id, _ in pending}) - bar.n)
            except BaseException:
                for request_id, _ in pending:
                    self.abort(request_id)
                raise
        return results

    def _has_place(self, n: int) -> bool:
        waiting = len(self.scheduler.waiting)
        return waiting < self.config.max_num_seqs and waiting + n <= self.config.max_waiting

    def _collect(self, delta: Delta, pending: dict[tuple[str, int], tuple[Detokenizer, Completion]]) -> None:
        key = (delta.request_id, delta.index)
        if key not in pending:
            return  # a stop string was found in the delta before
        detokenizer, completion = pending[key]
        chunk = detokenizer.push(delta)
        completion.text += chunk.text
        completion.token_ids += chunk.token_ids
        if completion.logprobs is not None and chunk.logprobs:
            completion.logprobs += chunk.logprobs
        if chunk.hidden_state is not None:
            completion.hidden_state = chunk.hidden_state
        if chunk.finish_reason is None:
            return
        completion.finish_reason = chunk.finish_reason
        completion.stop_reason = chunk.stop_reason
        del pending[key]
        if delta.finish_reason is None:
            self.finish_sequence(delta.request_id, delta.index)

    def finish_sequence(self, request_id: str, index: int) -> None:
        """End one completion of a request because its text is complete (a stop string was found)."""
        for seq in self._live.get(request_id, ()):
            if seq.index == index and seq.status is not Status.FINISHED:
                self._finish(seq, "stop")
                return


@dataclass(frozen=True, slots=True)
class _Step:
    """A step under way.

    Attributes:
        may_wait: whether the next can be scheduled before its tokens are known.
        begun, launched: when, with what the draft model did before and without.
        num_tokens, num_keys: of its batch.
    """

    scheduled: list[ScheduledSequence]
    launch: Launch
    may_wait: bool
    begun: float
    launched: float
    num_tokens: int
    num_keys: int


def _overlaps(config: EngineConfig, backend: Backend) -> bool:
    if config.draft_model is not None or config.sparse_attention is not None:
        return False  # guesses follow what is known; telemetry of every step waits for its end
    return config.overlap == "on" or (config.overlap == "auto" and backend.device.type == "cuda")


def _fingerprint(model: str, config: EngineConfig) -> str:
    """The model's, and of what else in the settings changes answers."""
    sparse = config.sparse_attention
    if sparse is None:
        return model
    prompts = "" if sparse.prompt_mass is None else f"-{sparse.prompt_mass}"
    return f"{model}-sparse-{sparse.mass}-{sparse.min_context}-{sparse.estimate}{prompts}"
