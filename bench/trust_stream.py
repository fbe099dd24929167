"""The trusted rung on labelled streams: hit rate, and wrong answers among hits, beside fixed thresholds and vCache's policy.

    python bench/trust_stream.py --data FOLDER --commands shared/data/command_examples.jsonl.gz

Every `*.jsonl` in FOLDER is a stream, one {"text": "...", "answer_id": "..."} a line in the order of arrival; two requests
have the same answer when their ids are equal. CLINC150 becomes one with the intent as the id (out-of-scope rows: an id
each), question pairs with the connected group of duplicates as the id. `--commands` adds a stream written by script from
descriptions of commands (see trust_traffic.py). With neither, a small stream of our own is written.

Writes bench/results/trust.json, trust.md and trust.png. Embeddings stay in .work/. A minute a stream, and embedding it.
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


def measure(replayed: Stream) -> Iterator[Row]:
    fixed = {threshold: replay(replayed, Fixed(threshold)) for threshold in THRESHOLDS}
    for threshold in SHOWN:
        yield row(replayed, "fixed", None, fixed[threshold], threshold=threshold)
    for delta in DELTAS:
        outcome = replay(replayed, Trust(delta))
        yield row(replayed, "trust", delta, outcome)
        for policy, most in (("fixed, same error", outcome.error()), ("fixed, best under bound", delta)):
            threshold, best = most_hits(fixed, most)
            yield row(replayed, policy, delta, best, threshold=threshold)
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
        "hit_rate": round(outcome.hits / len(replayed.rows), 5),
        "error": round(outcome.error(), 5),
        "error_interval": [round(low, 5), round(high, 5)],
        "wrong_of_requests": round(outcome.wrong / len(replayed.rows), 5),
        "first_hit": outcome.first_hit,
        # The bound is violated where even the interval's lower end is above it.
        "holds": None if delta is None else low <= delta,
    }
    print(json.dumps(figures), flush=True)
    return figures


def table(rows: list[Row]) -> str:
    lines = [
        "Wrong: of the trusted hits, with the 95 % interval (Clopper-Pearson). Hit rate: trusted hits of all requests;",
        "exact hits come on top. *In hindsight*: thresholds chosen after the stream was seen. vCache bounds wrong answers",
        "among *all* requests; where it is over the bound among hits, that is no breach of its promise.",
        "",
        "| stream | policy | bound | exact | trusted hits | hit rate | wrong | interval | wrong of all requests |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {
        "trust": "**Penstock**",
        "vcache": "vCache's policy",
        "fixed, same error": "fixed, no more errors than Penstock, in hindsight",
        "fixed, best under bound": "fixed, best under the bound, in hindsight",
    }
    for found in rows:
        name = names.get(found["policy"], found["policy"])
        if found.get("threshold") is not None:
            name += f" ({found['threshold']})"
        low, high = found["error_interval"]
        bound = "" if found["delta"] is None else f"{found['delta']:.1%}"
        errors = f"{found['error']:.2%} | {low:.2%}-{high:.2%}" if found["hits"] else "- | -"
        lines.append(
            f"| {found['stream']} ({found['requests']:,}) | {name} | {bound} | {found['exact'] / found['requests']:.1%} "
            f"| {found['hits']:,} | {found['hit_rate']:.1%} | {errors} | {found['wrong_of_requests']:.2%} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(found["stream"] for found in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.6 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for policy, mark, colour, label in (
            ("fixed", ".-", "#999999", "fixed threshold"),
            ("vcache", "s--", "#d08030", "vCache's policy"),
            ("trust", "o-", "#2060b0", "Penstock"),
        ):
            points = [found for found in rows if found["stream"] == name and found["policy"] == policy]
            axis.plot(
                [found["error"] * 100 for found in points],
                [found["hit_rate"] * 100 for found in points],
                mark,
                color=colour,
                label=label,
            )
            if policy == "trust":
                for found in points:
                    axis.annotate(
                        f"{found['delta']:.1%}",
                        (found["error"] * 100, found["hit_rate"] * 100),
                        textcoords="offset points",
                        xytext=(5, -10),
                        color=colour,
                        fontsize=8,
                    )
        for delta in DELTAS:
            axis.axvline(delta * 100, color="#b03030", linewidth=0.6, linestyle=":")
        axis.set_xscale("symlog", linthresh=0.5)
        axis.set_xlim(-0.05, 50)
        axis.set_xticks([0, 0.5, 1, 3, 10, 30], ["0", "0.5", "1", "3", "10", "30"])
        axis.set_ylim(bottom=0)
        axis.set_title(name)
        axis.set_xlabel("wrong among trusted hits, %  (dotted: the bounds)")
    axes[0][0].set_ylabel("trusted hits of all requests, %")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def streams(args: argparse.Namespace) -> Iterator[tuple[str, list[Request]]]:
    if args.data:
        yield from read_folder(args.data)
    if args.commands:
        yield "commands", commands(args.commands, 24_000)
    if not args.data and not args.commands:
        yield "support", support(4000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of streams")
    parser.add_argument("--commands", type=Path, help="JSONL of commands to write a stream from")
    parser.add_argument(
        "--model", type=Path, default=find_embedding_model(), help="folder of the embedding model"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="where the results go")
    args = parser.parse_args()
    if args.model is None:
        print("Install penstock[semantic], or give --model.", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    embed = embedder(args.model, ROOT / ".work")
    rows: list[Row] = []
    for name, requests in streams(args):
        rows += measure(stream(name, requests, embed))
    (args.out / "trust.json").write_text(json.dumps(rows, indent=1) + "\n")
    (args.out / "trust.md").write_text(table(rows))
    plot(rows, args.out / "trust.png")
    return 0 if all(found["holds"] for found in rows if found["policy"] == "trust") else 1


if __name__ == "__main__":
    sys.exit(main())
