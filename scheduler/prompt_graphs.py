"""Replays steps that compute prompts, attention apart, instead of launching each kernel from Python: as CUDA graphs.

What attention launches depends on how many sequences there are, how long and of what kind; what a model launches before,
between and behind its attentions depends on the number of rows alone. So these pieces are recorded for a few numbers of
rows, and attention is launched between them. A step with fewer rows is filled up with rows that no attention sees.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..kernels.span import NULL_BLOCK, Span
from ..models.attention_hook import StepContext
from ..models.kv_cache import KVCache
from ..models.loading import LoadedModel
from .cuda_graph import Cut

if TYPE_CHECKING:
    from ..kernels.gpu.paged_batch import PagedBatch
    from ..models.gpu_kv_cache import GpuKVCache

log = logging.getLogger(__name__)

# More rows keep a GPU busy for longer than Python takes to launch the next kernel.
MOST_TOKENS = 2048
LEAST_TOKENS = 16
LEAST_KEPT = 16

# Computes, and records the pieces; what it returns launches them again, on the same memory, and what was cut in between.
RecordPieces = Callable[[Callable[[Cut], Tensor]], Callable[[], Tensor]]


def record_no_pieces(compute: Callable[[Cut], Tensor]) -> Callable[[], Tensor]:
    """For the interpreter, which has no graphs: computes again."""

    def cut(launch: Callable[[], object]) -> None:
        launch()

    return lambda: compute(cut)


@dataclass(slots=True)
class _Recorded:
    """A step's memory, and what computes it.

    Attributes:
        rows: [3, T] int64: token ids, positions, and which rows' logits are wanted in which place.
    """

    rows: Tensor
    replay: Callable[[], Tensor]


class PromptGraphs:
    """The graphs of one model with one KV cache.

    Args:
        record: how a computation becomes what can be replayed; `CudaGraphs.record_pieces` on a GPU.
        most_tokens: of a step that is worth it.
    """

    def __init__(
        self, model: LoadedModel, kv_cache: "GpuKVCache", record: RecordPieces, most_tokens: int
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._record = record
        self._most_tokens = min(most_tokens, MOST_TOKENS)
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._logits: Tensor | None = None
        self._batch: PagedBatch | None = None
        self._num_tokens = 0
        # What attention reads and writes, by name and shape of a row: every layer's and every graph's, one after the other.
        self._room: dict[tuple[str, int, int], Tensor] = {}

    def logits(
        self, input_ids: Tensor, positions: Tensor, kept_rows: Tensor, spans: list[Span]
    ) -> Tensor | None:
        """As `Forward.logits`, valid until the next call; None for a step that no graph computes."""
        num_tokens, num_kept = input_ids.shape[1], kept_rows.shape[0]
        if num_tokens > self._most_tokens or self._model.adapters.in_use:
            return None
        self._batch, self._num_tokens = self._kv_cache.prepare(spans), num_tokens
        tokens = padded_tokens(num_tokens)
        shape = (tokens, min(tokens, padded_kept(num_kept)))
        recorded = self._recorded.get(shape)
        rows = input_ids.new_zeros(3, tokens) if recorded is None else recorded.rows
        # What a step before has left in the rows behind is as good as any: ids of tokens, and numbers of rows.
        for own, given in zip(rows, (input_ids[0], positions[0], kept_rows), strict=True):
            own[: given.shape[0]] = given
        if recorded is None:
            recorded = self._new(rows, shape[1])
            if recorded is None:
                return None
            self._recorded[shape] = recorded
        return recorded.replay()[:num_kept]

    @torch.inference_mode()
    def record_all(self, most_seqs: int) -> None:
        """Records before the first request comes what steps of up to `most_seqs` sequences will need."""
        started, device = time.perf_counter(), self._kv_cache.device
        largest = padded_tokens(self._most_tokens)
        sizes = sorted({padded_tokens(tokens) for tokens in range(1, largest + 1)}, reverse=True)
        for tokens in sizes:  # from the largest on: the others take its memory; so with `kept`
            # One prompt of nobody's, in the block that is nobody's.
            pages = -(-tokens // self._kv_cache.block_size)
            self._batch = self._kv_cache.prepare([Span([NULL_BLOCK] * pages, 0, tokens)])
            self._num_tokens = tokens
            counts = {min(tokens, padded_kept(seqs)) for seqs in range(1, most_seqs + 1)}
            for kept in sorted(counts, reverse=True):
                rows = torch.zeros(3, tokens, dtype=torch.int64, device=device)
                recorded = self._new(rows, kept)
                if recorded is None:
                    return
                self._recorded[tokens, kept] = recorded
        log.info(
            "recorded %d CUDA graphs of steps with prompts in %.1f s",
            len(self._recorded),
            time.perf_counter() - started,
        )

    def _new(self, rows: Tensor, num_kept: int) -> _Recorded | None:
        """None where the model computes what no graph can, and so from then on."""

        def compute(cut: Cut) -> Tensor:
            context = StepContext(cast(KVCache, _Between(self, cut)), None)
            logits = self._model.forward(rows[:1], rows[1:2], rows[2, :num_kept], context)
            if self._logits is None or len(self._logits) < num_kept:
                # One for all graphs of so many: only the last one's are looked at.
                self._logits = torch.empty_like(logits)
            return self._logits[:num_kept].copy_(logits)

        try:
            return _Recorded(rows, self._record(compute))
        except RuntimeError as error:
            log.warning("prompts are computed without CUDA graphs, which cannot record this model: %s", error)
            self._most_tokens = 0
            return None

    def room(self, name: str, like: Tensor) -> Tensor:
        """[T, H, D] for [H, T, D]"""
        num_heads, num_tokens, dim = like.shape
        key = (name, num_heads, dim)
        if key not in self._room:
            size = (padded_tokens(self._most_tokens), num_heads, dim)
            self._room[key] = like.new_zeros(size)  # rows that no attention sees must be numbers too
        return self._room[key][:num_tokens]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor, how: dict[str, Any]
    ) -> None:
        """Of the step at hand: its rows of query, key and value [T, H, D], to out [T, Hq, D]."""
        assert self._batch is not None
        rows = self._num_tokens
        query, key, value = (x[:rows].transpose(0, 1) for x in (query, key, value))
        self._kv_cache.attend(layer, query, key, value, self._batch, **how, out=out[:rows])


class _Between:
    """Stands in for the KV cache while pieces are recorded: takes what attention reads to where it stays, and cuts there."""

    def __init__(self, graphs: PromptGraphs, cut: Cut) -> None:
        self._graphs = graphs
        self._cut = cut

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, batch: None, **how: Any
    ) -> Tensor:
        query, key, value = (
            self._graphs.room(name, x).copy_(x.transpose(0, 1))
            for name, x in (("query", query), ("key", key), ("value", value))
        )
        out = self._graphs.room("out", query.transpose(0, 1))
        self._cut(partial(self._graphs.attend, layer, query, key, value, out, how))
        return out


def padded_tokens(tokens: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: at most half as many again."""
    power = 1 << max(LEAST_TOKENS.bit_length() - 1, (tokens - 1).bit_length())
    return power * 3 // 4 if power > LEAST_TOKENS and tokens <= power * 3 // 4 else power


def padded_kept(rows: int) -> int:
    """The next of 16, 64, 256, ...: a product with the vocabulary takes as long for one row as for many."""
    kept = LEAST_KEPT
    while kept < rows:
        kept *= 4
    return kept
