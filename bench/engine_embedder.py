"""How well the serving model's own states tell questions apart, beside the embedding model; and what they cost.

    python bench/engine_embedder.py                     # builtin-large
    python bench/engine_embedder.py --model builtin

Two sets of pairs: `near_pairs.py`, questions on shell commands made by rules, which the built-in models are trained for,
and `trust_pairs.jsonl`, written by hand on all subjects, which they are not. Of each set the share of pairs with a
similarity of at least 0.8, paraphrases and others, and the area under the ROC curve: how often a paraphrase is nearer than
another pair. Then the same against pairs of unlike questions of the second set. `recall@1`: how often a written paraphrase
is the nearest of all questions of its set.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path

import numpy as np
from near_pairs import near_pairs
from numpy.typing import NDArray

from penstock.cache.embedder import Embedder
from penstock.cache.near import DRAFT_SIMILARITY
from penstock.models.embedding_location import embedding_model_name, find_embedding_model
from penstock.proxy.backend import Backend
from penstock.proxy.engine_embedder import EngineEmbedder
from penstock.scheduler import AsyncEmbedder, AsyncEngine, EngineConfig

WRITTEN = Path(__file__).parent / "trust_pairs.jsonl"
PARAPHRASES = ("frame", "synonym")
UNLIKE_PAIRS = 20_000

Pairs = list[tuple[str, str]]


class Set:
    """Pairs that mean the same, and others."""

    def __init__(self, name: str, same: Pairs, other: Pairs) -> None:
        self.name, self.same, self.other = name, same, other

    @property
    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for pair in self.same + self.other for text in pair))


def sets() -> list[Set]:
    made = near_pairs(2000)
    written = [json.loads(line) for line in WRITTEN.read_text().splitlines()]
    return [
        Set(
            "made",
            [(pair.first, pair.second) for pair in made if pair.kind in PARAPHRASES],
            [(pair.first, pair.second) for pair in made if pair.kind not in PARAPHRASES],
        ),
        Set(
            "written",
            [(row["query"], row["neighbour"]) for row in written if row["same"]],
            [(row["query"], row["neighbour"]) for row in written if not row["same"]],
        ),
    ]


async def vectors_of(embedder: Embedder, texts: list[str]) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(texts), 64):
        some = texts[start : start + 64]
        found |= zip(some, await embedder.embed(some), strict=True)
    return found


async def milliseconds(embedder: Embedder, texts: list[str]) -> float:
    taken = []
    for text in texts:
        start = time.perf_counter()
        await embedder.embed([text])
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken) * 1e3, 2)


def area(same: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Under the ROC curve: how often one of `same` is above one of `other`, ties for half."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, same, "left") + np.searchsorted(ordered, same, "right")
    return round(float(below.mean()) / 2 / len(other), 4)


def figures(own: Set, vectors: dict[str, NDArray[np.float32]]) -> dict[str, float]:
    def cosines(pairs: Pairs) -> NDArray[np.float32]:
        return np.array([vectors[one] @ vectors[other] for one, other in pairs])

    same, other = cosines(own.same), cosines(own.other)
    found = {
        "same_found": round(float((same >= DRAFT_SIMILARITY).mean()), 3),
        "others_found": round(float((other >= DRAFT_SIMILARITY).mean()), 3),
        "area": area(same, other),
    }
    if own.name != "written":
        return found
    generator = random.Random(0)
    unlike = cosines([(one, other) for one, other in _drawn(generator, own.texts) if one != other])
    matrix, nearest = np.stack([vectors[text] for text in own.texts]), 0
    for query, wanted in own.same:
        similar = matrix @ vectors[query]
        similar[own.texts.index(query)] = -2
        nearest += own.texts[int(similar.argmax())] == wanted
    return found | {
        "unlike_found": round(float((unlike >= DRAFT_SIMILARITY).mean()), 4),
        "unlike_area": area(same, unlike),
        "recall@1": round(nearest / len(own.same), 3),
    }


async def measure(name: str, embedder: Embedder) -> None:
    for own in sets():
        found = figures(own, await vectors_of(embedder, own.texts))
        show(embedder=name, pairs=own.name, number=len(own.same) + len(own.other), **found)
    show(embedder=name, ms_per_question=await milliseconds(embedder, sets()[1].texts[:200]))


def _drawn(generator: random.Random, texts: list[str]) -> Pairs:
    return [(generator.choice(texts), generator.choice(texts)) for _ in range(UNLIKE_PAIRS)]


def show(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


async def run(model: str, quantize: str) -> None:
    backend = Backend(model, AsyncEngine(EngineConfig(model=model, quantize=quantize, threads=1)))
    await backend.start()
    try:
        await measure(backend.name, EngineEmbedder(backend))
    finally:
        await backend.close()
    packaged = find_embedding_model()
    if packaged is not None:
        embedder = AsyncEmbedder(str(packaged))
        try:
            await measure(embedding_model_name(str(packaged)), embedder)
        finally:
            await embedder.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin-large")
    parser.add_argument("--quantize", default="auto")
    args = parser.parse_args()
    asyncio.run(run(args.model, args.quantize))


if __name__ == "__main__":
    main()
