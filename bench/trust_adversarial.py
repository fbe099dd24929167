"""How many wrong neighbours the lexical guards let through, by category, and how many true paraphrases.

    python bench/trust_adversarial.py [PAIRS.jsonl ...] [--show]

A line of a file holds `query`, `neighbour`, `same` (whether one answer serves both) and `category`; without a file
the hand-written pairs beside this script are taken. `--show` prints the wrong pairs that passed and the paraphrases
that did not.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from penstock.cache.trust.guards import Facets, differing

HAND_WRITTEN = Path(__file__).with_name("trust_pairs.jsonl")


@dataclass(frozen=True, slots=True)
class Pair:
    query: str
    neighbour: str
    same: bool
    category: str


def read_pairs(file: Path) -> list[Pair]:
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Pair(row["query"], row["neighbour"], row["same"], row.get("category", file.stem)) for row in rows]


def show_table(pairs: Iterable[Pair], *, show: bool) -> None:
    counted: dict[tuple[bool, str], Counter[str]] = {}
    for pair in pairs:
        category = differing(pair.query, pair.neighbour)
        counted.setdefault((pair.same, pair.category), Counter())[category or "served"] += 1
        if show and (category is None) is not pair.same:
            print(f"{pair.category}: {category or 'served'}\n    {pair.query}\n    {pair.neighbour}")
    for same, title in ((False, "wrong neighbours"), (True, "true paraphrases")):
        chosen = {category: found for (kind, category), found in counted.items() if kind is same}
        if chosen:
            print(f"\n{title:<24}{'pairs':>8}{'served':>8}{'share':>9}   refused as")
        total = Counter[str]()
        for category, found in chosen.items():
            show_row(category, found)
            total += found
        if len(chosen) > 1:
            show_row("all", total)


def show_row(category: str, found: Counter[str]) -> None:
    reasons = ", ".join(f"{name} {count}" for name, count in found.most_common(5) if name != "served")
    print(
        f"{category[:23]:<24}{found.total():>8}{found['served']:>8}{found['served'] / found.total():>9.2%}   {reasons}"
    )


def show_cost(pairs: list[Pair]) -> None:
    """CPU time, so that other work on the machine counts little."""
    texts = [pair.query for pair in pairs]
    reading, comparing = [], []
    for _ in range(5):
        start = time.process_time()
        facets = [Facets.of(text) for text in texts]
        reading.append((time.process_time() - start) / len(texts) * 1e6)
        start = time.process_time()
        for one, other in zip(facets, facets[1:] + facets[:1], strict=True):
            differing(one, other)
            differing(one, one)
        comparing.append((time.process_time() - start) / (2 * len(texts)) * 1e6)
    words = statistics.mean(len(text.split()) for text in texts)
    print(
        f"\nreading a question of {words:.0f} words {statistics.median(reading):.1f} µs, "
        f"comparing two that were read {statistics.median(comparing):.2f} µs of CPU"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, nargs="*", default=[HAND_WRITTEN], help="JSONL files")
    parser.add_argument(
        "--show", action="store_true", help="print the pairs that were decided against their label"
    )
    options = parser.parse_args()
    pairs = [pair for file in options.pairs for pair in read_pairs(file)]
    show_table(pairs, show=options.show)
    show_cost(pairs)


if __name__ == "__main__":
    main()
