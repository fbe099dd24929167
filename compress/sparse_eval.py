"""What sparse attention saves and costs on one model, on keys as they really are: `penstock eval sparse`.

A text is read into the engine's own KV cache. Then, for each mass: the time of attention when decoding, dense and sparse in
turn; how much is kept, what share of the attention that truly is, and how far the output is off, by each way of estimating
(the one that serves, `int8`, and both that need only summaries); the perplexity of the text's last tokens, each computed as
a decode; and facts found again in contexts as long as the model takes.
"""

import math
import random
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels.cpu.sparse_attention import SparseTelemetry
from ..kernels.reference.sparse_attention import (
    ESTIMATORS,
    select,
    sparse_attention_reference,
    true_mass,
)
from ..kernels.span import Span
from ..models.attention_hook import StepContext
from ..models.cpu_kv_cache import CpuKVCache
from ..models.loading import LoadedModel
from .machine import machine
from .needles import VALUE_TOKENS, FactWriter, Needle, hide

SERVED = "int8"
BLOCK = 32
CHUNK = 512
TIMED_ROUNDS = 30
SHORTEST_TIMED = 2048
DISTRACTORS = 8
# Rows at the end of the text whose attention is looked into, in every layer.
INSPECTED_ROWS = 4
SEED = 1


@dataclass(frozen=True, slots=True)
class Speed:
    """Attention of one decoded row in all layers, by a context's length.

    Attributes:
        dense_ms: median; ratio: of the sparse median to it, by mass; kept: share of the keys attended to, by mass.
    """

    context: int
    dense_ms: float
    ratio: dict[float, float]
    kept: dict[float, float]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What an estimator's selection keeps, over INSPECTED_ROWS rows of every layer and head.

    Attributes:
        kept: mean share of granules kept; true_mass: mean share of the attention these hold; least_mass: of any head.
        output_error: mean of |sparse - dense| / |dense|.
    """

    estimator: str
    mass: float
    kept: float
    true_mass: float
    least_mass: float
    output_error: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model makes of it: perplexity of the last tokens, and needles found; `mass` None is dense attention."""

    mass: float | None
    perplexity: float
    needles_found: int


@dataclass(slots=True)
class Report:
    model: str
    context: int
    decoded: int
    needles: int
    machine: str
    speed: list[Speed] = field(default_factory=list)
    fidelity: list[Fidelity] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)


class RecordingCache(CpuKVCache):
    """Remembers the last row that each layer attended with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rows: dict[int, tuple[Tensor, Tensor, Tensor, dict[str, Any]]] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, batch: Any, **options: Any
    ) -> Tensor:
        self.rows[layer] = (query[:, -1:].clone(), key[:, -1:].clone(), value[:, -1:].clone(), options)
        return super().attend(layer, query, key, value, batch, **options)


class Reader:
    """One sequence in a KV cache of its own, read densely, decoded either way."""

    def __init__(self, model: LoadedModel) -> None:
        num_blocks = -(-model.max_model_len // BLOCK)
        self._model = model
        self._table = list(range(1, num_blocks + 1))
        self.cache = RecordingCache(model.layers, num_blocks + 1, BLOCK, model.dtype, sparse=True)

    def read(self, ids: list[int], start: int, stop: int) -> None:
        """Positions [start, stop) as a prompt, by chunks."""
        for first in range(start, stop, CHUNK):
            self._forward(ids[first : min(first + CHUNK, stop)], first, None)

    def decode(self, token: int, position: int, mass: float | None) -> Tensor:
        """[V] float32 logits of what follows `token`."""
        return self._forward([token], position, mass)

    def _forward(self, tokens: list[int], first: int, mass: float | None) -> Tensor:
        context = StepContext(self.cache, self.cache.prepare([self.span(first, len(tokens), mass)]))
        logits: Tensor = self._model.module(
            input_ids=torch.tensor([tokens]),
            position_ids=torch.arange(first, first + len(tokens))[None],
            use_cache=False,
            logits_to_keep=1,
            penstock=context,
        ).logits
        return logits[0, -1].float()

    def span(self, first: int, count: int, mass: float | None) -> Span:
        return Span(self._table, first, count, mass)


def standard_library(encode: Callable[[str], list[int]], at_least: int) -> list[int]:
    """The source of Python's standard library as token ids: a long text that every machine has."""
    ids: list[int] = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids += encode(file.read_text(encoding="utf-8"))
        if len(ids) >= at_least:
            break
    return ids


@torch.inference_mode()
def evaluate(
    model: LoadedModel,
    encode: Callable[[str], list[int]],
    text: list[int] | None,
    *,
    masses: list[float],
    decoded: int = 256,
    needles: int = 20,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measures `model`, which must be on a CPU.

    Args:
        text: token ids to read, at least as many as the model's context; default: the standard library.
        masses: thresholds, each above 0 and at most 1.
        decoded: last tokens whose perplexity is taken; needles: facts hidden, at even depths.

    Raises ConfigError when the text is shorter than the context.
    """
    context = model.max_model_len
    if text is None:
        text = standard_library(encode, 4 * context)
    if len(text) <= context:
        raise ConfigError(
            f"The text has {len(text)} tokens; it must be longer than the model's context of {context}.",
            param="text",
        )
    report = Report(str(model.path), context, decoded, needles, machine())
    reader = Reader(model)
    ids = text[:context]
    done = 0
    for length in lengths(context):
        reader.read(ids, done, length)
        done = length
        report.speed.append(_speed(reader, length, masses))
        progress(f"{length} tokens: dense {report.speed[-1].dense_ms:.2f} ms")
    for estimator in ESTIMATORS:
        report.fidelity += _fidelity(reader, ids, estimator, masses)
        progress(f"selection by {estimator} judged")
    ways: list[float | None] = [None, *masses]
    perplexities = {}
    for mass in ways:
        perplexities[mass] = _perplexity(reader, ids, decoded, mass)
        progress(f"perplexity at mass {mass or 'dense'}: {perplexities[mass]:.4f}")
    found = dict.fromkeys(ways, 0)
    writer = FactWriter(encode, model.vocab_size)
    for number, needle in enumerate(evaluated_needles(writer, text, context, needles)):
        reader.read(needle.text, 0, len(needle.text))
        for mass in ways:
            found[mass] += _is_found(reader, needle, mass)
        progress(f"needle {number + 1} of {needles}: {found[None]} found densely so far")
    report.answers = [Answers(mass, perplexities[mass], found[mass]) for mass in ways]
    return report


def lengths(context: int) -> list[int]:
    """Powers of two from SHORTEST_TIMED, then the whole context."""
    lengths = []
    length = SHORTEST_TIMED
    while length < context:
        lengths.append(length)
        length *= 2
    return [*lengths, context]


def _speed(reader: Reader, length: int, masses: list[float]) -> Speed:
    dense: list[float] = []
    ratio, kept = {}, {}
    for mass in masses:
        telemetry = reader.cache.sparse_telemetry = SparseTelemetry()
        mine, others = [], []
        for _ in range(TIMED_ROUNDS):
            others.append(_attention_seconds(reader, length, None))
            mine.append(_attention_seconds(reader, length, mass))
        ratio[mass] = statistics.median(mine) / statistics.median(others)
        # All of the mass is served as dense attention, which nobody counts.
        kept[mass] = telemetry.kept_tokens / telemetry.context_tokens if telemetry.context_tokens else 1.0
        dense += others
    return Speed(length, statistics.median(dense) * 1e3, ratio, kept)


def _attention_seconds(reader: Reader, length: int, mass: float | None) -> float:
    """The last row read, attended with once more in every layer."""
    batch = reader.cache.prepare([reader.span(length - 1, 1, mass)])
    rows = list(reader.cache.rows.items())
    start = time.perf_counter()
    for layer, (query, key, value, options) in rows:
        CpuKVCache.attend(reader.cache, layer, query, key, value, batch, **options)
    return time.perf_counter() - start


def _fidelity(reader: Reader, ids: list[int], estimator: str, masses: list[float]) -> list[Fidelity]:
    """Rows are the last ones of the context, whose keys are all stored."""
    estimate = ESTIMATORS[estimator]
    kept: dict[float, list[float]] = {mass: [] for mass in masses}
    true: dict[float, list[Tensor]] = {mass: [] for mass in masses}
    errors: dict[float, list[float]] = {mass: [] for mass in masses}
    for position in range(len(ids) - INSPECTED_ROWS, len(ids)):
        reader.decode(ids[position], position, None)
        for layer, (row, _, _, options) in reader.cache.rows.items():
            if options["sliding_window"] or options["sinks"] is not None or options["softcap"]:
                continue  # always dense, or beyond what the summaries' formulas say
            query, scaling = row[:, 0], options["scaling"]
            slots = slice(BLOCK, BLOCK + position + 1)  # behind the null block, in order
            keys, values = (pool[:, slots] for pool in reader.cache.layers[layer])
            log_mass = estimate(query, keys, scaling)
            everything = torch.ones(log_mass.shape[0], log_mass.shape[2], dtype=torch.bool)
            dense = sparse_attention_reference(query, keys, values, scaling, everything)
            for mass in masses:
                chosen = select(log_mass, mass, position + 1)
                out = sparse_attention_reference(query, keys, values, scaling, chosen)
                kept[mass].append(float(chosen.double().mean()))
                true[mass].append(true_mass(query, keys, scaling, chosen).flatten())
                errors[mass].append(float((out - dense).norm() / dense.norm()))
    return [
        Fidelity(
            estimator,
            mass,
            statistics.mean(kept[mass]),
            float(torch.cat(true[mass]).mean()),
            float(torch.cat(true[mass]).min()),
            statistics.mean(errors[mass]),
        )
        for mass in masses
        if kept[mass]
    ]


def _perplexity(reader: Reader, ids: list[int], count: int, mass: float | None) -> float:
    loss = 0.0
    for position in range(len(ids) - 1 - count, len(ids) - 1):
        logits = reader.decode(ids[position], position, mass)
        loss -= float(logits.log_softmax(-1)[ids[position + 1]])
    return math.exp(loss / count)


def evaluated_needles(writer: FactWriter, text: list[int], context: int, count: int) -> Iterator[Needle]:
    rng = random.Random(SEED)
    for index in range(count):
        depth = (index + 0.5) / count
        yield hide(rng, text, writer, context - VALUE_TOKENS, depth, DISTRACTORS)


def _is_found(reader: Reader, needle: Needle, mass: float | None) -> bool:
    """Whether greedy decoding gives the value. The question is decoded too, so that it is looked up as asked."""
    position = len(needle.text)
    pending = list(needle.question)
    answer: list[int] = []
    while len(answer) < len(needle.value):
        logits = reader.decode(pending.pop(0), position, mass)
        position += 1
        if not pending:
            answer.append(int(logits.argmax()))
            pending.append(answer[-1])
    return answer == needle.value
