"""One model over one flat batch of tokens, with its KV: what target and draft model have in common."""

import torch
from torch import Tensor

from ..kernels.cpu.native.library import use_threads
from ..kernels.span import Span
from ..models.attention_hook import StepContext
from ..models.kv_cache import KVCache
from ..models.loading import LoadedModel

# Products of a small model and a few rows are over before a second thread has woken up; one thread is then as fast on an
# idle machine, several times faster on a busy one, and leaves a core to the proxy. Long prompts are worth every core.
SMALL_MODEL_PARAMETERS = 32 << 20
SHORT_STEP_TOKENS = 128


class Forward:
    """Computes logits and stores KV."""

    def __init__(self, model: LoadedModel, kv_cache: KVCache) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._threads = torch.get_num_threads()
        self._few_threads = 1 if model.num_parameters <= SMALL_MODEL_PARAMETERS else self._threads

    def logits(self, input_ids: Tensor, positions: Tensor, kept_rows: Tensor, spans: list[Span]) -> Tensor:
        """[S, V] of the S `kept_rows` (int64) among the T of `input_ids` and `positions` (both [1, T]), which are those of
        `spans` in order."""
        if self._model.backend.kind == "cpu":
            short = input_ids.shape[1] < SHORT_STEP_TOKENS
            threads = self._few_threads if short else self._threads
            use_threads(threads)
            # What torch has to do beside our layers is over before another thread is awake.
            torch.set_num_threads(1 if "layers" in self._model.fused else threads)
        try:
            context = StepContext(self._kv_cache, self._kv_cache.prepare(spans))
            return self._model.forward(input_ids, positions, kept_rows, context)
        finally:
            if self._model.backend.kind == "cpu":
                torch.set_num_threads(self._threads)  # in a process that is not ours alone
