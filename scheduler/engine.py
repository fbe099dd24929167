"""The engine: schedule, execute, settle. Synchronous, single-threaded, token ids in and out.

engine = Engine(EngineConfig(model="builtin"))
results = engine.generate(["how do I list files?"], SamplingParams(temperature=0))
"""

import logging
import secrets
import time
from collections.abc import Sequence as Seq
from dataclasses import asdict

import torch

from ..config import SparseAttention
from ..errors import ContextLengthError, InvalidRequestError, ModelLoadError, OverloadedError
from ..kernels.dispatch import describe
from ..models.loading import load_model
from .block_manager import BlockManager
from .detokenizer import Detokenizer, TextTokenizer
from .engine_config import EngineConfig
from .model_runner import ModelRunner
from .outputs import Completion, Delta, EngineStats, FinishReason, GenerationResult, ModelInfo, SparseStats
from .sampler import SampledToken
from .sampling_params import SamplingParams, checked_token_ids
from .scheduler import Scheduler
from .sequence import Sequence, Status

log = logging.getLogger(__name__)

QUEUE_FULL_RETRY_SECONDS = 1.0
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
        )
        if config.max_model_len is not None and config.max_model_len > model.max_model_len:
            raise ModelLoadError(
                f"max_model_len is {config.max_model_len}, but {model.path.name} takes at most "
                f"{model.max_model_len} tokens; lower it, or leave it out."
            )
        self.max_model_len = config.max_model_len or model.max_model_len
        self.runner = ModelRunner(model, config, self.max_model_len)
        self.block_manager = BlockManager(
            self.runner.num_blocks, self.runner.block_size, prefix_caching=config.prefix_caching
        )
        self.scheduler = Scheduler(
            self.block_manager,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self.info = ModelInfo(
            name=config.model if config.model == "builtin" else model.path.name,
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
            kernels=describe(model.backend, model.precision, model.fused, model.experts),
        )
        self._live: dict[str, list[Sequence]] = {}
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
    ) -> None:
        """Queue `params.n` completions of one prompt.

        Raises InvalidRequestError, ContextLengthError or OverloadedError before anything is queued.
        """
        self._check(request_id, prompt_token_ids, params)
        room = self.max_model_len - len(prompt_token_ids)
        stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_token_ids |= frozenset(self.info.eos_token_ids)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        arrived = time.monotonic()
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
                sparse_attention=self._sparse_attention(params),
                arrived=arrived,
            )
            for index in range(params.n)
        ]
        self._live[request_id] = seqs
        for seq in seqs:
            self.scheduler.add(seq)

    def abort(self, request_id: str) -> None:
        """End a request and free its blocks at once; unknown or finished ids are fine."""
        for seq in self._live.pop(request_id, ()):
            if seq.status is not Status.FINISHED:
                self.scheduler.finish(seq, "abort")

    def is_live(self, request_id: str) -> bool:
        """Whether any completion of the request is still to be computed."""
        return request_id in self._live

    def has_work(self) -> bool:
        return self.scheduler.has_work()

    def step(self) -> list[Delta]:
        """Compute one batch; returns what it added to which sequence."""
        output = self.scheduler.schedule()
        if not output.scheduled:
            return []
        now = time.monotonic()
        for item in output.scheduled:
            if item.seq.queue_seconds is None:
                item.seq.queue_seconds = now - item.seq.arrived
        sampled = self.runner.execute(output)
        self._steps += 1
        for item in output.scheduled:
            # Of the tokens just computed, those of the prompt; the rest are outputs being fed back.
            prompt_left = item.seq.num_prompt_tokens - item.seq.num_computed_tokens
            self._prompt_tokens += max(0, min(item.num_new_tokens, prompt_left))
            self.block_manager.mark_computed(item.seq, item.num_new_tokens)
        self._generation_tokens += len(sampled)
        return [self._settle(seq, token) for seq, token in sampled]

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
        )

    def check(self) -> None:
        """Assert the engine's invariants; for tests and debugging."""
        self.scheduler.check()
        live = [seq for seqs in self._live.values() for seq in seqs if seq.status is not Status.FINISHED]
        assert len(live) == len(self.scheduler.running) + len(self.scheduler.waiting), "a sequence is lost"

    def _sparse_attention(self, params: SamplingParams) -> SparseAttention | None:
        """Of one request: its own, else the engine's; None for dense, which all of the mass is too."""
        asked = self.config.sparse_attention if params.sparse_attention is None else params.sparse_attention
        return asked if isinstance(asked, SparseAttention) and asked.mass < 1 else None

    def _check(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        if request_id in self._live:
            raise InvalidRequestError(f"request id {request_id!r} is already live; choose another.")
        checked_token_ids(prompt_token_ids)
        if not prompt_token_ids:
            raise InvalidRequestError("The prompt is empty; give at least one token.", param="prompt")
        vocab_size = self.info.vocab_size
        worst = max(prompt_token_ids, key=lambda token: token if token >= 0 else vocab_size - token)
        if not 0 <= worst < vocab_size:
            raise InvalidRequestError(
                f"The prompt holds token id {worst}; this model's ids are 0 to {vocab_size - 1}.",
                param="prompt",
            )
        for name, token_ids in (
            ("logit_bias", params.logit_bias or {}),
            ("stop_token_ids", params.stop_token_ids),
        ):
            for token_id in token_ids:
                if not 0 <= token_id < vocab_size:
                    raise InvalidRequestError(
                        f"{name} names token id {token_id}; this model's ids are 0 to {vocab_size - 1}.",
                        param=name,
                    )
        if params.min_tokens and len({*params.stop_token_ids, *self.info.eos_token_ids}) >= vocab_size:
            raise InvalidRequestError(
                f"stop_token_ids names every token there is, and min_tokens is {params.min_tokens}: no token is left.",
                param="stop_token_ids",
            )
        if params.sparse_attention and self.config.sparse_attention is None:
            raise InvalidRequestError(
                "sparse_attention is asked for, but this engine keeps nothing to choose keys by; start it with "
                "sparse_attention = {mass = 1.0} to have it on request.",
                param="sparse_attention",
            )
        own, engines = params.sparse_attention, self.config.sparse_attention
        if isinstance(own, SparseAttention) and engines is not None and own.estimate != engines.estimate:
            raise InvalidRequestError(
                f"sparse_attention.estimate is '{own.estimate}'; this engine estimates from '{engines.estimate}'.",
                param="sparse_attention",
            )
        needed = len(prompt_token_ids) + (params.max_tokens or 1)
        if needed > self.max_model_len:
            raise ContextLengthError(
                f"The prompt has {len(prompt_token_ids)} tokens and max_tokens is {params.max_tokens or 1}, "
                f"{needed} together; this model takes {self.max_model_len}. Shorten the prompt or lower max_tokens.",
                param="max_tokens" if len(prompt_token_ids) < self.max_model_len else "prompt",
            )
        if params.n > self.config.max_waiting:
            raise InvalidRequestError(
                f"n is {params.n}, but at most {self.config.max_waiting} sequences may wait; lower n.",
                param="n",
            )
        waiting = len(self.scheduler.waiting)
        if waiting + params.n > self.config.max_waiting:
            raise OverloadedError(
                f"{waiting} sequences are waiting, the limit is {self.config.max_waiting}; try again later.",
                retry_after=QUEUE_FULL_RETRY_SECONDS,
            )

    def _settle(self, seq: Sequence, token: SampledToken | None) -> Delta:
        if token is None:
            # Nobody may find KV that holds NaN. (Blocks that are shared and sound stay as they are: others read them.)
            self.block_manager.forget(self.runner.kv_cache.broken_blocks(seq.block_table))
            self._finish(seq, "error")
            return Delta(
                seq.request_id,
                seq.index,
                [],
                finish_reason="error",
                error="The model gave no finite logits for this sequence.",
            )
        seq.token_ids.append(token.token_id)
        reason: FinishReason | None = None
        stop_token_id: int | None = None
        if token.token_id in seq.stop_token_ids:
            reason, stop_token_id = "stop", token.token_id
        elif seq.num_output_tokens >= seq.max_tokens:
            reason = "length"
        if reason:
            self._finish(seq, reason)
        return Delta(
            seq.request_id,
            seq.index,
            [token.token_id],
            logprobs=None if token.logprob is None else [token.logprob],
            finish_reason=reason,
            stop_token_id=stop_token_id,
            num_cached_tokens=seq.num_cached_tokens,
            queue_seconds=seq.queue_seconds if seq.num_output_tokens == 1 else None,
        )

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(seq, reason)
        seqs = self._live[seq.request_id]
        if all(other.status is Status.FINISHED for other in seqs):
            del self._live[seq.request_id]

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
        if self.has_work():
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
                    for delta in self.step():
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
        detokenizer, completion = pending[key]
        chunk = detokenizer.push(delta)
        completion.text += chunk.text
        completion.token_ids += chunk.token_ids
        if completion.logprobs is not None and chunk.logprobs:
            completion.logprobs += chunk.logprobs
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


def _fingerprint(model: str, config: EngineConfig) -> str:
    """The model's, and of what else in the settings changes answers."""
    sparse = config.sparse_attention
    return model if sparse is None else f"{model}-sparse-{sparse.mass}-{sparse.min_context}-{sparse.estimate}"
