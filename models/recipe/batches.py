"""Conversations as batches of token ids: tokenized, sorted by length within a chunk, padded on the right.

With causal attention nothing ever looks at padding on the right, so no mask is needed. A chunk is a pure
function of (seed, chunk index): training that resumes at a chunk sees what it would have seen.
"""

import itertools
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from .chat import Conversation
from .corpus import Corpus

IGNORE = -100
LONG_PAIRS = 22  # about 1,200 tokens
MAX_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Batch:
    """Both [B, L] int64; `labels[:, t]` is the token after `ids[:, t]`, or IGNORE: nothing to be learnt."""

    ids: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class Example:
    """The tokens of one conversation, and which of them the model learns to write."""

    ids: list[int]
    learn: list[bool]


def tokenize(tokenizer: Tokenizer, conversations: list[Conversation]) -> list[Example]:
    """Token ids of each conversation and which of them the model learns to write, at most MAX_TOKENS each."""
    segments = [c.segments() for c in conversations]
    flat = tokenizer.encode_batch([text for parts in segments for text, _ in parts], add_special_tokens=False)
    encodings = iter(flat)
    examples = []
    for parts in segments:
        ids: list[int] = []
        learn: list[bool] = []
        for _, answer in parts:
            piece = next(encodings).ids
            ids += piece
            learn += [answer] * len(piece)
        examples.append(Example(ids[:MAX_TOKENS], learn[:MAX_TOKENS]))
    return examples


def to_batch(examples: list[Example]) -> Batch:
    length = max(len(e.ids) for e in examples) - 1
    length += -length % 8  # fewer shapes for the compiler
    ids = torch.zeros(len(examples), length, dtype=torch.int64)
    labels = torch.full((len(examples), length), IGNORE, dtype=torch.int64)
    for i, e in enumerate(examples):
        n = len(e.ids) - 1
        row = torch.tensor(e.ids)
        ids[i, :n] = row[:-1]
        labels[i, :n] = torch.where(torch.tensor(e.learn[1:]), row[1:], IGNORE)
    return Batch(ids, labels)


def group(examples: list[Example], batch_tokens: int) -> Iterator[Batch]:
    """Batches of at most `batch_tokens` padded tokens, shortest conversations first."""
    pending: list[Example] = []
    for e in sorted(examples, key=lambda e: len(e.ids)):
        if pending and (len(pending) + 1) * len(e.ids) > batch_tokens:
            yield to_batch(pending)
            pending = []
        pending.append(e)
    if pending:
        yield to_batch(pending)


def chunk(
    corpus: Corpus, tokenizer: Tokenizer, seed: int, index: int, batch_tokens: int, conversations: int = 1500
) -> list[Batch]:
    """The batches of chunk `index`, in random order."""
    rng = random.Random(seed * 1_000_003 + index)
    drawn = [corpus.sample(rng) for _ in range(conversations)]
    batches = list(group(tokenize(tokenizer, drawn), batch_tokens))
    if sum(len(b.ids) for b in batches[-1:]) < 8:  # a last batch of a few rows would be a noisy step
        batches.pop()
    rng.shuffle(batches)
    return batches


def chunks(
    corpus: Corpus, tokenizer: Tokenizer, seed: int, first: int, batch_tokens: int, workers: int
) -> Iterator[list[Batch]]:
    """The chunks from number `first` on, for ever; made ahead by `workers` processes, if there are any."""
    source = _Chunks(corpus, tokenizer, seed, batch_tokens)
    numbers = itertools.count(first)
    loader = DataLoader(
        source, batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=_ignore_signals
    )
    return iter(loader)


def _ignore_signals(worker: int) -> None:
    """Of a terminal or a supervisor, to the whole group: training ends by itself, and its workers with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class _Chunks(Dataset[list[Batch]]):
    """Chunks by their numbers, each some batches long."""

    corpus: Corpus
    tokenizer: Tokenizer
    seed: int
    batch_tokens: int

    def __getitem__(self, index: int) -> list[Batch]:
        conversations = max(1500, self.batch_tokens // 8)
        return chunk(self.corpus, self.tokenizer, self.seed, index, self.batch_tokens, conversations)


def long_batch(corpus: Corpus, tokenizer: Tokenizer, seed: int, step: int, batch_tokens: int) -> Batch:
    """One batch of conversations of many turns (1-2k tokens each)."""
    rng = random.Random(seed * 1_000_003 - step)
    count = max(1, batch_tokens // 1500)
    return to_batch(tokenize(tokenizer, [corpus.sample_long(rng, LONG_PAIRS) for _ in range(count)]))
