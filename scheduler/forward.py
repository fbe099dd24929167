"""One model over one flat batch of tokens, with its KV: what target and draft model have in common."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ModelLoadError
from ..kernels.cpu.native.library import use_threads
from ..kernels.dispatch import Backend
from ..kernels.span import Span
from ..models.attention_hook import StepContext
from ..models.kv_cache import KVCache
from ..models.loading import LoadedModel
from .engine_config import EngineConfig

if TYPE_CHECKING:
    from .cuda_graph import CudaGraphs
    from .decode_graphs import DecodeGraphs
    from .prompt_graphs import PromptGraphs

# Products of a small model and a few rows are over before a second thread has woken up; one thread is then as fast on an
# idle machine, several times faster on a busy one, and leaves a core to the proxy. Long prompts are worth every core.
SMALL_MODEL_PARAMETERS = 32 << 20
SHORT_STEP_TOKENS = 128


class Forward:
    """Computes logits and stores KV.

    Raises ModelLoadError where `config` asks for CUDA graphs and the machine has none.
    """

    def __init__(self, model: LoadedModel, kv_cache: KVCache, config: EngineConfig) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._graphs = _decode_graphs(model, kv_cache, config)
        self._prompt_graphs = _prompt_graphs(model, kv_cache, config)
        self._threads = torch.get_num_threads()
        self._few_threads = 1 if model.num_parameters <= SMALL_MODEL_PARAMETERS else self._threads

    def logits(self, input_ids: Tensor, positions: Tensor, kept_rows: Tensor, spans: list[Span]) -> Tensor:
        """[S, V] of the S `kept_rows` (int64) among the T of `input_ids` and `positions` (both [1, T]), which are those of
        `spans` in order. Valid until the next call."""
        for graphs in (self._graphs, self._prompt_graphs):
            if graphs is not None:
                replayed = graphs.logits(input_ids, positions, kept_rows, spans)
                if replayed is not None:
                    return replayed
        return self._compute(input_ids, positions, kept_rows, spans)[0]

    def logits_and_states(
        self, input_ids: Tensor, positions: Tensor, kept_rows: Tensor, spans: list[Span]
    ) -> tuple[Tensor, Tensor]:
        """The same, and of the same rows the final hidden states [S, H]."""
        logits, states = self._compute(input_ids, positions, kept_rows, spans, keeps_states=True)
        assert states is not None
        return logits, states

    def _compute(
        self,
        input_ids: Tensor,
        positions: Tensor,
        kept_rows: Tensor,
        spans: list[Span],
        *,
        keeps_states: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if self._model.backend.kind == "cpu":
            short = input_ids.shape[1] < SHORT_STEP_TOKENS
            threads = self._few_threads if short else self._threads
            use_threads(threads)
            # What torch has to do beside our layers is over before another thread is awake.
            torch.set_num_threads(1 if "layers" in self._model.fused else threads)
        try:
            context = StepContext(self._kv_cache, self._kv_cache.prepare(spans), keeps_states)
            logits = self._model.forward(input_ids, positions, kept_rows, context)
            return logits, context.states
        finally:
            if self._model.backend.kind == "cpu":
                torch.set_num_threads(self._threads)  # in a process that is not ours alone


def _decode_graphs(model: LoadedModel, kv_cache: Any, config: EngineConfig) -> "DecodeGraphs | None":
    if not _has_graphs(model.backend, "decode_graphs", config.decode_graphs):
        return None
    from .decode_graphs import DecodeGraphs, record_nothing

    graphs = _cuda_graphs(model.backend)
    record = record_nothing if graphs is None else graphs.record
    return DecodeGraphs(model, kv_cache, record, most_rows=1 << (config.max_num_seqs - 1).bit_length())


def _prompt_graphs(model: LoadedModel, kv_cache: Any, config: EngineConfig) -> "PromptGraphs | None":
    if not _has_graphs(model.backend, "prompt_graphs", config.prompt_graphs):
        return None
    from .prompt_graphs import PromptGraphs, record_no_pieces

    graphs = _cuda_graphs(model.backend)
    record = record_no_pieces if graphs is None else graphs.record_pieces
    found = PromptGraphs(model, kv_cache, record, most_tokens=config.max_num_batched_tokens)
    found.record_all(config.max_num_seqs)
    return found


def _has_graphs(backend: Backend, name: str, asked: str) -> bool:
    if asked == "on" and backend.kind == "cpu":
        raise ModelLoadError(f"{name} is 'on', which is for GPUs; on a CPU leave it out.", param=name)
    return asked == "on" or (asked == "auto" and backend.kind != "cpu" and not backend.is_interpreted)


def _cuda_graphs(backend: Backend) -> "CudaGraphs | None":
    """None for the interpreter, which has none."""
    if backend.is_interpreted:
        return None
    from .cuda_graph import CudaGraphs

    return CudaGraphs(backend.device)
