"""The trusted rung on labelled streams: hit rate, and wrong answers among hits, beside fixed thresholds and vCache's policy.

    python bench/trust_stream.py --data FOLDER --commands shared/data/command_examples.jsonl.gz

Every `*.jsonl` in FOLDER is a stream, one {"text": "...", "answer_id": "..."} a line in the order of arrival; two requests
have the same answer when their ids are equal. CLINC150 becomes one with the intent as the id (out-of-scope rows: an id
each), question pairs with the connected group of duplicates as the id. `--commands` adds a stream written by script from
descriptions of commands (see trust_traffic.py). With neither, a small stream of our own is written.

Writes bench/results/trust.json, trust.md and trust.png. Embeddings stay in .work/. Two minutes a stream, and embedding it.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trust_policies import Fixed, Trust, VCache
from trust_replay import Outcome, Stream, replay, stream
from trust_traffic import Request, commands, read_folder, support

from penstock.cache.trust.guards import GUARD_SETS, GuardSet
from penstock.models.embedding_location import find_embedding_model
from penstock.models.embedding_model import EmbeddingModel
from penstock.models.tokenizer import Tokenizer

DELTAS = (0.005, 0.01, 0.03)
SHOWN = (0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
# Among these the best threshold is looked for, which only hindsight can.
THRESHOLDS = tuple(round(0.8 + step * 0.005, 3) for step in range(41))
ROOT = Path(__file__).parent.parent

Row = dict[str, Any]


def embedder(model: Path, work: Path) -> Callable[[list[str]], np.ndarray]:
    """Unit vectors of texts, from a file where they have been made before."""

    def embed(texts: list[str]) -> np.ndarray:
        name = hashlib.blake2b("\0".join((str(model), *texts)).encode(), digest_size=8).hexdigest()
        file = work / f"trust-{name}.npy"
        if not file.exists():
            encoder, tokenizer = EmbeddingModel(model), Tokenizer.load(str(model))
            ids = [tokenizer.encode(text)[: encoder.max_tokens] for text in texts]
            parts = [encoder.embed(ids[begin : begin + 64]).numpy() for begin in range(0, len(ids), 64)]
            work.mkdir(exist_ok=True)
            np.save(file, np.concatenate(parts))
        return np.asarray(np.load(file))

    return embed


def measure(replayed: Stream, guard_sets: list[GuardSet]) -> Iterator[Row]:
    fixed = {threshold: replay(replayed, Fixed(threshold)) for threshold in THRESHOLDS}
    for threshold in SHOWN:
        yield row(replayed, "fixed", None, fixed[threshold], threshold=threshold)
    for guards in guard_sets:
        for delta in DELTAS:
            outcome = replay(replayed, Trust(delta, guards))
            threshold, best = most_hits(fixed, outcome.error())
            alike = {"threshold": threshold, "hit_rate": share(best.hits, replayed)}
            yield row(replayed, "trust", delta, outcome, guards=guards, fixed_no_more_wrong=alike)
    for delta in DELTAS:
        threshold, best = most_hits(fixed, delta)
        yield row(replayed, "fixed, best under bound", delta, best, threshold=threshold)
    for delta in DELTAS:
        yield row(replayed, "vcache", delta, replay(replayed, VCache(delta)))


def most_hits(fixed: dict[float, Outcome], error: float) -> tuple[float | None, Outcome]:
    """The fixed threshold with most hits among those at most so wrong; an empty outcome where none is."""
    bearable = [(t, outcome) for t, outcome in fixed.items() if outcome.hits and outcome.error() <= error]
    return max(bearable, key=lambda pair: pair[1].hits, default=(None, Outcome(requests=1)))


def row(replayed: Stream, policy: str, delta: float | None, outcome: Outcome, **more: object) -> Row:
    low, high = outcome.interval()
    figures = {
        "stream": replayed.name,
        "policy": policy,
        "delta": delta,
        **more,
        "requests": len(replayed.rows),
        "exact": outcome.exact,
        "hits": outcome.hits,
        "wrong": outcome.wrong,
        "hit_rate": share(outcome.hits, replayed),
        "error": round(outcome.error(), 5),
        "error_interval": [round(low, 5), round(high, 5)],
        "wrong_of_requests": share(outcome.wrong, replayed),
        "first_hit": outcome.first_hit,
        # The bound is violated where even the interval's lower end is above it.
        "holds": None if delta is None else low <= delta,
    }
    print(json.dumps(figures), flush=True)
    return figures


def share(count: int, replayed: Stream) -> float:
    return round(count / len(replayed.rows), 5)


def table(rows: list[Row]) -> str:
    lines = [
        "Hit rate: trusted hits of all requests; exact hits come on top. Wrong: of the trusted hits, with the 95 % interval",
        "(Clopper-Pearson); then wrong ones of all requests, which vCache bounds and Penstock does not. Guards: what two",
        "questions may not differ in, the setting `cache_guards`. *Fixed alike*: hit rate of the fixed threshold with most",
        "hits among those no more wrong, which only hindsight can choose.",
    ]
    for stream_name in dict.fromkeys(found["stream"] for found in rows):
        chosen = [found for found in rows if found["stream"] == stream_name]
        lines += [
            "",
            f"## {stream_name}: {chosen[0]['requests']:,} requests",
            "",
            "| policy | guards | bound | exact | trusted hits | hit rate | wrong | interval | of all | fixed alike |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *map(line, chosen),
        ]
    return "\n".join(lines) + "\n"


def line(found: Row) -> str:
    names = {
        "trust": "**Penstock**",
        "vcache": "vCache's policy",
        "fixed, best under bound": "fixed, best in hindsight",
    }
    name = names.get(found["policy"], found["policy"])
    if found.get("threshold") is not None:
        name += f" ({found['threshold']})"
    bound = "" if found["delta"] is None else f"{found['delta']:.1%}"
    low, high = found["error_interval"]
    errors = f"{found['error']:.2%} | {low:.2%}-{high:.2%}" if found["hits"] else "- | -"
    alike = found.get("fixed_no_more_wrong")
    beside = f"{alike['hit_rate']:.1%} ({alike['threshold'] or 'none'})" if alike else ""
    return (
        f"| {name} | {found.get('guards', '')} | {bound} | {found['exact'] / found['requests']:.1%} "
        f"| {found['hits']:,} | {found['hit_rate']:.1%} | {errors} | {found['wrong_of_requests']:.2%} | {beside} |"
    )


def plot(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"none": "#90c0f0", "bare": "#4090d8", "lean": "#2060b0", "strict": "#102860"}
    shown = [
        ("fixed", None, ".-", "#999999", "fixed threshold"),
        ("vcache", None, "s--", "#d08030", "vCache's policy"),
    ]
    guard_sets = dict.fromkeys(found["guards"] for found in rows if found["policy"] == "trust")
    shown += [("trust", guards, "o-", colours[guards], f"Penstock, {guards}") for guards in guard_sets]
    names = list(dict.fromkeys(found["stream"] for found in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.6 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for policy, guards, mark, colour, label in shown:
            points = [
                (found["error"] * 100, found["hit_rate"] * 100)
                for found in rows
                if (found["stream"], found["policy"], found.get("guards")) == (name, policy, guards)
            ]
            axis.plot(*zip(*points, strict=True), mark, color=colour, label=label)
        for delta in DELTAS:
            axis.axvline(delta * 100, color="#b03030", linewidth=0.6, linestyle=":")
        axis.set_xscale("symlog", linthresh=0.5)
        axis.set_xlim(-0.05, 50)
        axis.set_xticks([0, 0.5, 1, 3, 10, 30], ["0", "0.5", "1", "3", "10", "30"])
        axis.set_ylim(bottom=0)
        axis.set_title(name)
        axis.set_xlabel("wrong among trusted hits, %  (dotted: the bounds)")
    axes[0][0].set_ylabel("trusted hits of all requests, %")
    axes[0][len(names) // 2].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def streams(args: argparse.Namespace) -> Iterator[tuple[str, list[Request]]]:
    if args.data:
        yield from read_folder(args.data)
    if args.commands:
        yield "commands", commands(args.commands, 24_000)
    if not args.data and not args.commands:
        yield "support", support(4000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of streams")
    parser.add_argument("--commands", type=Path, help="JSONL of commands to write a stream from")
    parser.add_argument(
        "--guards", nargs="+", choices=GUARD_SETS, default=GUARD_SETS, help="sets of guards to measure; all"
    )
    parser.add_argument(
        "--model", type=Path, default=find_embedding_model(), help="folder of the embedding model"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="where the results go")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()
    if args.model is None:
        print("Install penstock[semantic], or give --model.", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    embed = embedder(args.model, ROOT / ".work")
    rows: list[Row] = []
    for name, requests in streams(args):
        rows += measure(stream(name, requests, embed), args.guards)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "trust.json").write_text(json.dumps(rows, indent=1) + "\n")
    (args.out / "trust.md").write_text(table(rows))
    plot(rows, args.out / "trust.png")
    return 0 if all(found["holds"] for found in rows if found["policy"] == "trust") else 1


if __name__ == "__main__":
    sys.exit(main())
