"""Replays steps that only decode, instead of launching each of their kernels from Python: on a GPU, as CUDA graphs.

A graph is a step with everything fixed but the contents of its tensors: so many rows, contexts up to so long. There is one
for each power of two of both, recorded when it is first needed. A step with fewer rows is filled up with rows of nobody,
which write to the block that is nobody's. What has a step launch other kernels (prompts, sparse attention, adapters) keeps
it out.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..kernels.span import NULL_BLOCK, Span
from ..models.attention_hook import StepContext
from ..models.loading import LoadedModel

if TYPE_CHECKING:
    from ..kernels.gpu.paged_batch import PagedBatch
    from ..models.gpu_kv_cache import GpuKVCache

log = logging.getLogger(__name__)

# What fills up a step: one token, with nothing before it.
NOBODY = Span([NULL_BLOCK], 0, 1)

# Computes, and records what that launches; what it returns launches the same again, on the same memory.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def record_nothing(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """For the interpreter, which has no graphs: computes again."""
    return compute


@dataclass(slots=True)
class _Recorded:
    """A step's memory, and what computes it.

    Attributes:
        rows: [3, B] int64: token ids, positions, and which rows' logits are wanted in which place.
    """

    rows: Tensor
    batch: "PagedBatch"
    replay: Callable[[], Tensor]


class DecodeGraphs:
    """The graphs of one model with one KV cache.

    Args:
        record: how a computation becomes what can be replayed; `CudaGraphs.record` on a GPU.
        most_rows: of a step that is worth a graph.
    """

    def __init__(self, model: LoadedModel, kv_cache: "GpuKVCache", record: Record, most_rows: int) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._record = record
        self._most_rows = most_rows
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._logits: Tensor | None = None

    def logits(
        self, input_ids: Tensor, positions: Tensor, kept_rows: Tensor, spans: list[Span]
    ) -> Tensor | None:
        """As `Forward.logits`, valid until the next call; None for a step that no graph computes."""
        if not self._can_replay(spans):
            return None
        missing = (1 << (len(spans) - 1).bit_length()) - len(spans)
        spans = spans + [NOBODY] * missing
        batch = self._kv_cache.prepare_decodes(spans)
        rows = input_ids.new_zeros(3, len(spans))
        for own, given in zip(rows, (input_ids[0], positions[0], kept_rows), strict=True):
            own[: given.shape[0]] = given
        shape = self._kv_cache.shape_of(spans)
        recorded = self._recorded.get(shape)
        if recorded is None:
            recorded = self._new(rows, batch)
            if recorded is None:
                return None
            self._recorded[shape] = recorded
        else:
            recorded.rows.copy_(rows)
            recorded.batch.packed.copy_(batch.packed)
        return recorded.replay()[: kept_rows.shape[0]]

    def _can_replay(self, spans: list[Span]) -> bool:
        return (
            len(spans) <= self._most_rows
            and not self._model.adapters.in_use
            and all(span.is_decode and span.sparse_mass is None for span in spans)
        )

    def _new(self, rows: Tensor, batch: "PagedBatch") -> _Recorded | None:
        """None where the model computes what no graph can, and so from then on."""

        def compute() -> Tensor:
            context = StepContext(self._kv_cache, batch)
            logits = self._model.forward(rows[:1], rows[1:2], rows[2], context)
            if self._logits is None:
                # One for all graphs: only the last one's are looked at.
                self._logits = logits.new_empty(self._most_rows, logits.shape[1])
            return self._logits[: logits.shape[0]].copy_(logits)

        try:
            replay = self._record(compute)
        except RuntimeError as error:
            log.warning("decodes are computed without CUDA graphs, which cannot record this model: %s", error)
            self._most_rows = 0
            return None
        return _Recorded(rows, batch, replay)
