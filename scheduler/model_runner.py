"""Runs the model over one step's batch and samples. Owns the weights and the KV tensors."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..errors import ModelLoadError
from ..kernels.dispatch import sampler_of
from ..models.kv_cache import bytes_per_token, default_block_size, make_kv_cache
from ..models.loading import LoadedModel
from .batch import build_batch
from .engine_config import EngineConfig
from .forward import Forward
from .sampler import Drawn, Place, SampledToken, draw, draws_of
from .scheduler import ScheduledSequence, SchedulerOutput
from .sequence import Sequence

# Without a setting the KV pool holds this many sequences of full length, within a share of the memory that is free.
# (The system commits its memory only where KV is written.)
DEFAULT_FULL_SEQUENCES = 16
MEMORY_SHARE = 0.4


class ModelRunner:
    """Executes scheduler outputs on one model.

    `beside`: the draft model, whose KV takes its share of the memory that the pool is sized by.

    Raises ModelLoadError when the KV pool would not hold a single sequence of full length.
    """

    def __init__(
        self, model: LoadedModel, config: EngineConfig, max_model_len: int, beside: LoadedModel | None = None
    ) -> None:
        self.model = model
        self.backend = model.backend
        self._sampler = sampler_of(self.backend)
        # A GPU computes beside Python by itself.
        threaded = config.overlap == "on" and self.backend.device.type != "cuda"
        self._start = _in_thread() if threaded else _at_once
        self.block_size = config.block_size or default_block_size(self.backend)
        kv_dtype = kv_dtype_of(model)
        per_token = bytes_per_token(model.layers, kv_dtype)
        if beside is not None:
            per_token += bytes_per_token(beside.layers, kv_dtype_of(beside))
        num_tokens = config.kv_cache_tokens or _default_kv_tokens(model, config, max_model_len, per_token)
        if num_tokens < max_model_len:
            raise ModelLoadError(
                f"The KV cache holds {num_tokens} tokens, less than one sequence of max_model_len {max_model_len}; "
                "raise kv_cache_tokens or lower max_model_len."
            )
        # One more for the null block.
        self.num_blocks = math.ceil(num_tokens / self.block_size) + 1
        try:
            self.kv_cache = make_kv_cache(
                self.backend,
                model.layers,
                self.num_blocks,
                self.block_size,
                kv_dtype,
                sparse=config.sparse_attention.estimate if config.sparse_attention else None,
            )
        except ValueError as error:
            raise ModelLoadError(str(error)) from error
        self.kv_bytes_per_token = bytes_per_token(model.layers, kv_dtype)
        self._forward = Forward(model, self.kv_cache, config)

    def execute(self, output: SchedulerOutput, before: "Launch | None" = None) -> "Launch":
        """Have the scheduled tokens computed. All that is read of the sequences is read before this returns, but of those
        that `sampler.needs_tokens` or have drafts, which must stay as they are until the step is over.

        `before`: the step under way, which tells the tokens that are ahead.
        """
        batch = build_batch(
            output,
            self.backend.device,
            before={} if before is None else before.places,
            drafts_as_decodes=self.backend.kind == "triton",
        )
        places = [Place(item.seq, number) for item in batch.due for number in range(len(item.draft) + 1)]
        draws = draws_of(places)
        # Now: what is told of a sequence's first token is asked of it while it has none.
        with_state = [
            row
            for row, place in enumerate(places)
            if place.seq.params.hidden_state and not place.num_output_tokens
        ]

        @torch.inference_mode()
        def compute() -> Drawn:
            if before is not None and batch.ahead is not None:
                rows, sources = batch.ahead
                batch.input_ids[0].index_copy_(0, rows, before.drawn().token_ids[sources])
            self.model.adapters.use(batch.adapter_rows)
            rows_of = (batch.input_ids, batch.positions, batch.sample_rows, batch.spans)
            told: dict[int, Tensor] = {}
            if with_state:
                logits, states = self._forward.logits_and_states(*rows_of)
                told = {row: states[row] for row in with_state}
            else:
                logits = self._forward.logits(*rows_of)
            return draw(logits, places, draws, self.model.eos_token_ids, self._sampler, states=told)

        return Launch(batch.due, self._start(compute))


class Launch:
    """A step that is being computed, or has been.

    Attributes:
        drawn: gives what is sampled, where the device has it, once that is sure to be there before what is launched next.
        places: in which place of it stands the next token of each sequence that gets one, drafts apart.
    """

    def __init__(self, due: list[ScheduledSequence], drawn: Callable[[], Drawn]) -> None:
        self.drawn = drawn
        self.places: dict[Sequence, int] = {}
        self._counts = [(item, len(item.draft) + 1) for item in due]
        place = 0
        for item, count in self._counts:
            self.places[item.seq] = place
            place += count

    def tokens(self) -> list[tuple[ScheduledSequence, list[SampledToken | None]]]:
        """Waits for the end of the step. For every sequence that is due one, the token that follows its last, and those
        that follow each token of its draft if all before were right.

        A None in place of a token means that the model gave no finite logits for it.
        """
        tokens = iter(self.drawn().tokens())
        return [(item, [next(tokens) for _ in range(count)]) for item, count in self._counts]


def _at_once(compute: Callable[[], Drawn]) -> Callable[[], Drawn]:
    drawn = compute()
    return lambda: drawn


def _in_thread() -> Callable[[Callable[[], Drawn]], Callable[[], Drawn]]:
    thread = ThreadPoolExecutor(1, "penstock-compute")
    return lambda compute: thread.submit(compute).result


def kv_dtype_of(model: LoadedModel) -> torch.dtype:
    return torch.int8 if model.kv_cache_dtype == "int8" else model.dtype


def _default_kv_tokens(model: LoadedModel, config: EngineConfig, max_model_len: int, per_token: int) -> int:
    """`per_token`: bytes of KV."""
    if model.backend.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.backend.device)
        # The rest is for activations. Unlike a CPU's, this pool is committed at once: no more than can ever be used.
        fitting = int(free * config.gpu_memory_utilization // per_token)
        return min(config.max_num_seqs * max_model_len, fitting)
    fitting = int(_available_memory() * MEMORY_SHARE // per_token)
    return max(max_model_len, min(DEFAULT_FULL_SEQUENCES * max_model_len, fitting))


def _available_memory() -> int:
    """Bytes that can be taken without swapping; half of all memory where the system does not say."""
    import os

    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
