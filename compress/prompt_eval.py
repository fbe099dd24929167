"""What sparse prompts save and cost on one model, on keys as they really are: `penstock eval sparse-prompts`.

A text is read as a dense prompt into the engine's own KV cache, and the attention of every chunk timed, dense and by each
mass in turn. Then for each: how much is kept, what share of every row's attention that truly is, and how far the output is
off, in the last chunk; the perplexity of the last tokens, as the prompt itself predicts them; and facts found again by a
question at the prompt's end.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import SparseAttention
from ..errors import ConfigError
from ..kernels.cpu.sparse_attention import SparseTelemetry
from ..kernels.cpu.sparse_prompt import select_blocks
from ..kernels.reference.sparse_prompt import prompt_shares, sparse_prompt_reference
from ..kernels.span import PROMPT_BLOCK, Span
from ..models.attention_hook import StepContext
from ..models.cpu_kv_cache import CpuKVCache
from ..models.loading import LoadedModel
from .machine import machine
from .needles import FactWriter
from .sparse_eval import BLOCK, CHUNK, evaluated_needles, lengths, standard_library


@dataclass(slots=True)
class PromptAnswers:
    """What becomes of a prompt with `mass`, None for dense.

    Attributes:
        seconds: by length, of the attention of all chunks in all layers; kept: share of the keys that the blocks which
            choose attend to.
        true_mass, least_mass: the share of their attention that rows of the last chunk keep, mean and least of any head.
        output_error: mean of |sparse - dense| / |dense| over their blocks.
    """

    mass: float | None
    seconds: dict[int, float] = field(default_factory=dict)
    kept: dict[int, float] = field(default_factory=dict)
    true_mass: float = 1.0
    least_mass: float = 1.0
    output_error: float = 0.0
    perplexity: float = 0.0
    needles_found: int = 0


@dataclass(slots=True)
class PromptReport:
    model: str
    context: int
    min_context: int
    decoded: int
    needles: int
    machine: str
    answers: list[PromptAnswers] = field(default_factory=list)


class TimedCache(CpuKVCache):
    """Remembers what each layer last attended with, and adds up the time that attention takes in each of `ways`.

    A chunk is attended to once more for each way, in turn, so that a busy machine is busy for all of them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ways: dict[float | None, Any] = {}
        self.seconds: dict[float | None, float] = {}
        self.queries: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, batch: Any, **options: Any
    ) -> Tensor:
        out = super().attend(layer, query, key, value, batch, **options)
        for mass, way in self.ways.items():
            start = time.perf_counter()
            super().attend(layer, query, key, value, way, **options)
            self.seconds[mass] = self.seconds.get(mass, 0.0) + time.perf_counter() - start
        self.queries[layer] = (query, options)
        return out


class PromptReader:
    """One sequence in a KV cache of its own, of whose prompt the blocks from `first_sparse` on may choose their keys."""

    def __init__(self, model: LoadedModel, first_sparse: int) -> None:
        num_blocks = -(-model.max_model_len // BLOCK)
        self._model, self._first_sparse = model, first_sparse
        self._table = list(range(1, num_blocks + 1))
        self.cache = TimedCache(model.layers, num_blocks + 1, BLOCK, model.dtype, sparse=True)

    def read(self, ids: list[int], start: int, stop: int, mass: float | None, keep: int = 1) -> Tensor:
        """Positions [start, stop) as a prompt, by chunks; the logits [keep, V] of the last ones, all of the last chunk."""
        logits = torch.empty(0)
        for first in range(start, stop, CHUNK):
            last = min(first + CHUNK, stop)
            logits = self._forward(ids[first:last], self._span(first, last, mass), keep)
        return logits

    def time(self, ids: list[int], start: int, stop: int, masses: list[float]) -> None:
        """Like a dense `read`, adding each chunk's times to those of the cache, dense ones and by mass."""
        for first in range(start, stop, CHUNK):
            last = min(first + CHUNK, stop)
            self.cache.ways = {
                mass: self.cache.prepare([self._span(first, last, mass)]) for mass in (None, *masses)
            }
            self._forward(ids[first:last], self._span(first, last, None), 1)
        self.cache.ways = {}

    def _span(self, first: int, last: int, mass: float | None) -> Span:
        sparse = mass if first >= self._first_sparse else None
        return Span(self._table, first, last - first, sparse, is_prompt=True)

    def decode(self, token: int, position: int) -> Tensor:
        """[V] logits of what follows `token`, computed densely."""
        return self._forward([token], Span(self._table, position, 1), 1)[0]

    def _forward(self, tokens: list[int], span: Span, keep: int) -> Tensor:
        logits: Tensor = self._model.module(
            input_ids=torch.tensor([tokens]),
            position_ids=torch.arange(span.first_position, span.context_len)[None],
            use_cache=False,
            logits_to_keep=keep,
            penstock=StepContext(self.cache, self.cache.prepare([span])),
        ).logits
        return logits[0].float()


@torch.inference_mode()
def evaluate_prompts(
    model: LoadedModel,
    encode: Callable[[str], list[int]],
    text: list[int] | None,
    *,
    masses: list[float],
    decoded: int = 256,
    needles: int = 20,
    progress: Callable[[str], None] = lambda line: None,
) -> PromptReport:
    """Measures `model`, which must be on a CPU. Arguments as of `sparse_eval.evaluate`.

    Raises ConfigError when the text is no longer than the context, or `decoded` tokens are more than a chunk.
    """
    context = model.max_model_len
    if text is None:
        text = standard_library(encode, 4 * context)
    if len(text) <= context:
        raise ConfigError(
            f"The text has {len(text)} tokens; it must be longer than the model's context of {context}.",
            param="text",
        )
    if decoded >= CHUNK:
        raise ConfigError(
            f"decoded is {decoded}; of a prompt it must be below the chunk of {CHUNK}.", param="decoded"
        )
    # As served by default, from 4,096 tokens on; of a shorter context the first quarter at most is dense.
    min_context = min(SparseAttention().min_context, context // 4 // CHUNK * CHUNK)
    report = PromptReport(str(model.path), context, min_context, decoded, needles, machine())
    reader = PromptReader(model, min_context)
    report.answers = [PromptAnswers(mass) for mass in (None, *masses)]
    done = 0
    for length in lengths(context):
        reader.time(text, done, length, masses)
        done = length
        for answer in report.answers:
            answer.seconds[length] = reader.cache.seconds[answer.mass]
        progress(f"{length} tokens: {reader.cache.seconds[None]:.2f} s of dense attention")
    for answer in report.answers:
        _read_text(reader, text[:context], decoded, answer)
        progress(f"mass {answer.mass or 'dense'}: perplexity {answer.perplexity:.4f}")
    writer = FactWriter(encode, model.vocab_size)
    for number, needle in enumerate(evaluated_needles(writer, text, context, needles)):
        prompt = [*needle.text, *needle.question]
        for answer in report.answers:
            logits = reader.read(prompt, 0, len(prompt), answer.mass)[-1]
            found = [int(logits.argmax())]
            while len(found) < len(needle.value):
                found.append(int(reader.decode(found[-1], len(prompt) + len(found) - 1).argmax()))
            answer.needles_found += found == needle.value
        progress(f"needle {number + 1} of {needles}: {[answer.needles_found for answer in report.answers]}")
    return report


def _read_text(reader: PromptReader, ids: list[int], decoded: int, answer: PromptAnswers) -> None:
    cache = reader.cache
    cache.sparse_telemetry = SparseTelemetry()
    done, logits = 0, torch.empty(0)
    for length in lengths(len(ids)):
        logits = reader.read(ids, done, length, answer.mass, keep=decoded + 1)
        done = length
        telemetry = cache.sparse_telemetry
        kept = telemetry.prompt_kept_tokens / max(1, telemetry.prompt_context_tokens)
        answer.kept[length] = kept if telemetry.prompt_context_tokens else 1.0
    predicted = logits[-decoded - 1 : -1].log_softmax(-1)
    told = torch.tensor(ids[-len(predicted) :])
    answer.perplexity = math.exp(-float(predicted.gather(1, told[:, None]).mean()))
    if answer.mass is not None:
        _judge(cache, len(ids), answer)


def _judge(cache: TimedCache, context: int, answer: PromptAnswers) -> None:
    """Fills in what the blocks of the last chunk keep."""
    assert answer.mass is not None
    held: list[Tensor] = []
    errors: list[float] = []
    for layer, (queries, options) in cache.queries.items():
        if options["sliding_window"] or options["sinks"] is not None or options["softcap"]:
            continue  # always dense, or beyond what the reference says
        scaling, begin = options["scaling"], context - queries.shape[1]
        for first in range(begin, context, PROMPT_BLOCK):
            stop = min(first + PROMPT_BLOCK, context)
            query = queries[:, first - begin : stop - begin]
            slots = slice(BLOCK, BLOCK + stop)  # behind the null block, in order
            keys, values = (pool[:, slots] for pool in cache.layers[layer])
            shares = prompt_shares(query, keys, first, scaling)
            scaled = (query.float() * scaling).view(keys.shape[0], -1, *query.shape[1:])
            kept = torch.zeros(keys.shape[0], shares.shape[-1], dtype=torch.bool)
            sketch = cache.sketches[layer]
            for head, own in enumerate(scaled):
                whole = slice(BLOCK, BLOCK + -(-stop // PROMPT_BLOCK) * PROMPT_BLOCK)
                chosen = select_blocks(
                    own,
                    sketch.quantized[head, whole],
                    sketch.scale[head, whole],
                    first // PROMPT_BLOCK,
                    answer.mass,
                    None,
                )
                kept[head, chosen.blocks] = True
            held.append((shares * kept[:, None, None]).sum(dim=-1).flatten())
            dense, sparse = (
                sparse_prompt_reference(query, keys, values, first, scaling, which)
                for which in (torch.ones_like(kept), kept)
            )
            errors.append(float((sparse - dense).norm() / dense.norm()))
    if held:
        rows = torch.cat(held)
        answer.true_mass, answer.least_mass = float(rows.mean()), float(rows.min())
        answer.output_error = statistics.mean(errors)
