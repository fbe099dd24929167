"""Latency and throughput of the embedding model on one core, and how near INT8 is to float32.

    taskset -c 0 python bench/embedder.py [--model FOLDER]

Prints one line of JSON for each: the forward of one text by its length (the least CPU time of it beside that of torch's
operators, by turns, which a busy machine changes little), texts of 20 tokens in batches, a call through the embedder's
process with the tokenizer, what embedding a thousand texts does to the caller's event loop, and the cosine between INT8
and float32 vectors over sixty sentences.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from embedding_sentences import SENTENCES

from penstock.models.embedding_location import find_embedding_model
from penstock.models.embedding_model import EmbeddingModel
from penstock.models.encoder_weights import EncoderWeights
from penstock.models.tokenizer import Tokenizer
from penstock.models.torch_encoder import TorchEncoder
from penstock.scheduler import AsyncEmbedder

LENGTHS = (8, 20, 64, 128, 256)
BATCHES = (1, 4, 16, 64)
TICK_SECONDS = 0.001


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": round(statistics.median(ordered) * 1e3, 3),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 3),
    }


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    call()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 5:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def least_cpu_ms(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    taken: dict[str, list[int]] = {name: [] for name in calls}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for name, call in calls.items():
            call()  # has its own weights in the caches again
            start = time.process_time_ns()
            call()
            taken[name].append(time.process_time_ns() - start)
    return {name: round(min(own) / 1e6, 3) for name, own in taken.items()}


def forward(folder: Path, model: EmbeddingModel, seconds: float) -> None:
    generator = random.Random(0)
    config = json.loads((folder / "config.json").read_text())
    by_torch = TorchEncoder(EncoderWeights.read(folder, config, "w8a8"))

    def texts(number: int, length: int) -> list[list[int]]:
        return [[generator.randrange(1000, model.vocab_size) for _ in range(length)] for _ in range(number)]

    for length in LENGTHS:
        if length <= model.max_tokens:
            one = texts(1, length)
            calls = {
                "cpu_ms": lambda one=one: model.embed(one),
                "torch_cpu_ms": lambda one=one: by_torch(one),
            }
            show(
                part="forward",
                tokens=length,
                **percentiles(timed(calls["cpu_ms"], seconds)),
                **least_cpu_ms(calls, seconds),
            )
    for number in BATCHES:
        batch = texts(number, 20)
        taken = statistics.median(timed(lambda batch=batch: model.embed(batch), seconds))
        show(part="batch", texts=number, tokens=20, texts_per_second=round(number / taken))


def accuracy(folder: Path, model: EmbeddingModel) -> None:
    tokenizer = Tokenizer.load(str(folder))
    texts = [tokenizer.encode(sentence) for sentence in SENTENCES]
    quantized, exact = model.embed(texts), EmbeddingModel(folder, "none").embed(texts)
    cosines = (quantized * exact).sum(-1)
    apart = 2 * torch.eye(len(texts))
    nearest = [(vectors @ vectors.T - apart).argmax(-1) for vectors in (quantized, exact)]
    moved = (quantized @ quantized.T - exact @ exact.T).abs()
    show(
        part="accuracy",
        sentences=len(texts),
        cosine_mean=round(float(cosines.mean()), 5),
        cosine_min=round(float(cosines.min()), 5),
        same_nearest=int((nearest[0] == nearest[1]).sum()),
        largest_change_of_a_similarity=round(float(moved.max()), 4),
    )


async def process(folder: Path, seconds: float) -> None:
    embedder = AsyncEmbedder(str(folder))
    start = time.perf_counter()
    await embedder.start()
    show(part="start", seconds=round(time.perf_counter() - start, 2))
    taken: list[float] = []
    while sum(taken) < seconds:
        start = time.perf_counter()
        await embedder.embed([SENTENCES[len(taken) % len(SENTENCES)]])
        taken.append(time.perf_counter() - start)
    show(part="process", caller="one", **percentiles(taken))

    late: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            late.append(time.perf_counter() - due)

    async def callers(number: int) -> None:
        for place in range(1000 // 50):
            await embedder.embed([f"{SENTENCES[place]} {number}"])

    ticking = asyncio.create_task(tick())
    start = time.perf_counter()
    await asyncio.gather(*(callers(number) for number in range(50)))
    rate = 1000 / (time.perf_counter() - start)
    ticking.cancel()
    show(part="process", caller="fifty at once", texts_per_second=round(rate), loop_late=percentiles(late))
    await embedder.shutdown()


def show(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=find_embedding_model(), help="folder of the model")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    args = parser.parse_args()
    if args.model is None:
        print("Install penstock[semantic], or give --model.", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    model = EmbeddingModel(args.model)
    forward(args.model, model, args.seconds)
    accuracy(args.model, model)
    asyncio.run(process(args.model, args.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
