"""How many wrong neighbours the trusted rung serves, by category, and how many true paraphrases.

    python bench/trust_adversarial.py [PAIRS.jsonl ...] [--data FOLDER] [--commands FILE] [--show]

A line of a file holds `query`, `neighbour`, `same` (whether one answer serves both) and `category`; without a file the
hand-written pairs beside this script are taken. A policy first learns on a stream until it serves: on one written by
script, and on each that `trust_stream.py` would read. Then every pair is put to it as a stored question and a query, with
the cosine of their embeddings, and nothing else known of either.

Writes bench/results/trust-adversarial.md. `--show` prints the wrong pairs that were served.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from trust_policies import Trust
from trust_replay import Outcome, replay, stream
from trust_stream import ROOT, add_arguments, embedder, streams
from trust_traffic import HAND_WRITTEN, Pair, read_pairs, support

from penstock.cache.near import DRAFT_SIMILARITY
from penstock.cache.trust.features import features
from penstock.cache.trust.guards import GUARDS, Facets, GuardSet, differing
from penstock.cache.trust.policy import Observation

DELTA = 0.01


@dataclass
class Tally:
    """Pairs of one category: all, those near enough to be looked at, and of these by guard set those let pass and served."""

    pairs: int = 0
    near: int = 0
    passed: Counter[GuardSet] = field(default_factory=Counter)
    served: Counter[GuardSet] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        self.pairs += other.pairs
        self.near += other.near
        self.passed += other.passed
        self.served += other.served


def tally(
    pairs: list[Pair], cosines: list[float], policies: dict[GuardSet, Trust], *, show: bool
) -> dict[str, Tally]:
    """By category, the paraphrases apart."""
    tallies: dict[str, Tally] = {}
    for number, (pair, cosine) in enumerate(zip(pairs, cosines, strict=True)):
        found = tallies.setdefault("paraphrase" if pair.same else pair.category, Tally())
        found.pairs += 1
        if cosine < DRAFT_SIMILARITY:
            continue
        found.near += 1
        for guards, trust in policies.items():
            if differing(pair.query, pair.neighbour, GUARDS[guards]) is not None:
                continue
            found.passed[guards] += 1
            observation = Observation(number, features(pair.query, pair.neighbour, cosine))
            if trust.policy.decide(observation, 1.0).serve:  # never explored
                found.served[guards] += 1
                if show and not pair.same:
                    print(
                        f"served, {guards}: {pair.category} {cosine:.3f}\n    {pair.query}\n    {pair.neighbour}"
                    )
    return tallies


def table(name: str, tallies: dict[str, Tally], learnt: dict[GuardSet, Outcome]) -> Iterator[str]:
    wrong = {category: found for category, found in tallies.items() if category != "paraphrase"}
    yield f"## After {next(iter(learnt.values())).requests:,} requests of {name}"
    yield ""
    yield f"| category | pairs | cosine ≥ {DRAFT_SIMILARITY} |" + "".join(f" {guards} |" for guards in learnt)
    yield "|---|---|---|" + "---|" * len(learnt)
    total = Tally()
    for category, found in wrong.items():
        total.add(found)
        yield line(category, found, learnt)
    yield line("**all wrong**", total, learnt)
    if "paraphrase" in tallies:
        yield line("true paraphrases", tallies["paraphrase"], learnt)
    cells = []
    for guards, outcome in learnt.items():
        hits = outcome.hits + sum(found.served[guards] for found in tallies.values())
        cells.append(
            f" {(outcome.wrong + total.served[guards]) / hits:.2%} of {hits:,} |" if hits else " - |"
        )
    yield "| *wrong among hits, stream and pairs* | | |" + "".join(cells)
    yield ""


def line(category: str, found: Tally, learnt: dict[GuardSet, Outcome]) -> str:
    cells = "".join(
        f" {found.passed[guards]} → {found.served[guards]}{' (guarded)' if category in GUARDS[guards] else ''} |"
        for guards in learnt
    )
    return f"| {category} | {found.pairs} | {found.near} |{cells}"


def show_cost(pairs: list[Pair]) -> None:
    """CPU time, so that other work on the machine counts little."""
    texts = [pair.query for pair in pairs]
    neighbours = [Facets.of(pair.neighbour) for pair in pairs]
    reading, comparing = [], []
    for _ in range(5):
        start = time.process_time()
        facets = [Facets.of(text) for text in texts]
        reading.append((time.process_time() - start) / len(texts) * 1e6)
        start = time.process_time()
        for one, other in zip(facets, neighbours, strict=True):
            differing(one, other)
        comparing.append((time.process_time() - start) / len(texts) * 1e6)
    words = statistics.mean(len(text.split()) for text in texts)
    print(
        f"reading a question of {words:.0f} words {statistics.median(reading):.1f} µs, "
        f"comparing two that were read and differ {statistics.median(comparing):.1f} µs of CPU"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, nargs="*", default=[HAND_WRITTEN], help="JSONL files")
    parser.add_argument("--show", action="store_true", help="print the wrong pairs that were served")
    add_arguments(parser)
    args = parser.parse_args()
    if args.model is None:
        print("Install penstock[semantic], or give --model.", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    embed = embedder(args.model, ROOT / ".work")
    pairs = [pair for file in args.pairs for pair in read_pairs(file)]
    show_cost(pairs)
    queries, neighbours = embed([pair.query for pair in pairs]), embed([pair.neighbour for pair in pairs])
    cosines = np.einsum("nd,nd->n", queries, neighbours).tolist()
    lines = [
        f"Pairs that differ in one category, put to a policy with a bound of {DELTA:.0%}. For each set of guards: how many",
        "of the near ones pass → how many are served, all wrongly but for the paraphrases. Last row: wrong among all",
        "trusted hits, had the pairs come with the stream.",
        "",
    ]
    kept = True
    taught_by = dict(streams(args))
    taught_by.setdefault("support", support(4000))
    for name, requests in taught_by.items():
        replayed = stream(name, requests, embed)
        policies = {guards: Trust(DELTA, guards) for guards in args.guards}
        learnt = {guards: replay(replayed, trust) for guards, trust in policies.items()}
        tallies = tally(pairs, cosines, policies, show=args.show)
        lines += table(name, tallies, learnt)
        kept &= not any(
            found.served[guards]
            for guards in args.guards
            for category, found in tallies.items()
            if category in GUARDS[guards]
        )
    (args.out / "trust-adversarial.md").write_text("\n".join(lines[:-1]) + "\n")
    print("\n".join(lines))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
