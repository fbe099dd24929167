"""Runs the model over one step's batch and samples. Owns the weights and the KV tensors."""

import math

import torch

from ..errors import ModelLoadError
from ..kernels.dispatch import sampler_of
from ..models.attention_hook import StepContext
from ..models.kv_cache import bytes_per_token, default_block_size, make_kv_cache
from ..models.loading import LoadedModel
from .batch import build_batch
from .engine_config import EngineConfig
from .sampler import Place, SampledToken, sample
from .scheduler import ScheduledSequence, SchedulerOutput

# Without a setting the KV pool holds this many sequences of full length, within a share of the memory that is free.
# (The system commits its memory only where KV is written.)
DEFAULT_FULL_SEQUENCES = 16
MEMORY_SHARE = 0.4
# Products of a small model and a few rows are over before a second thread has woken up; one thread is then as fast on an
# idle machine, several times faster on a busy one, and leaves a core to the proxy. Long prompts are worth every core.
SMALL_MODEL_PARAMETERS = 32 << 20
SHORT_STEP_TOKENS = 128


class ModelRunner:
    """Executes scheduler outputs on one model.

    Raises ModelLoadError when the KV pool would not hold a single sequence of full length.
    """

    def __init__(self, model: LoadedModel, config: EngineConfig, max_model_len: int) -> None:
        self.model = model
        self.backend = model.backend
        self._sampler = sampler_of(self.backend)
        self._threads = torch.get_num_threads()
        self._few_threads = 1 if model.num_parameters <= SMALL_MODEL_PARAMETERS else self._threads
        self.block_size = config.block_size or default_block_size(self.backend)
        kv_dtype = torch.int8 if config.kv_cache_dtype == "int8" else model.dtype
        num_tokens = config.kv_cache_tokens or _default_kv_tokens(model, config, max_model_len, kv_dtype)
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

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> list[tuple[ScheduledSequence, list[SampledToken | None]]]:
        """Compute the scheduled tokens; for every sequence that is due one, returns the token that follows its last, and
        those that follow each token of its draft if all before were right.

        A None in place of a token means that the model gave no finite logits for it.
        """
        batch = build_batch(output, self.backend.device, drafts_as_decodes=self.backend.kind == "triton")
        if self.backend.kind == "cpu":
            short = batch.input_ids.shape[1] < SHORT_STEP_TOKENS
            torch.set_num_threads(self._few_threads if short else self._threads)
        self.model.adapters.use(batch.adapter_rows)
        result = self.model.module(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.sample_rows,
            penstock=StepContext(self.kv_cache, self.kv_cache.prepare(batch.spans)),
        )
        if not batch.due:
            return []
        places = [Place(item.seq, number) for item in batch.due for number in range(len(item.draft) + 1)]
        tokens = iter(sample(result.logits[0], places, self.model.eos_token_ids, self._sampler))
        return [(item, [next(tokens) for _ in range(len(item.draft) + 1)]) for item in batch.due]


def _default_kv_tokens(
    model: LoadedModel, config: EngineConfig, max_model_len: int, kv_dtype: torch.dtype
) -> int:
    per_token = bytes_per_token(model.layers, kv_dtype)
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
