"""Decode attention over long contexts on a CPU, dense and sparse, through the engine's own KV cache.

    python bench/sparse_attention.py [--model DIR] [--mass 0.8,0.9,0.95,0.99] [--decoded 256]

Keys and values are those of a model reading Python's standard library, so attention is as peaked as it really is. Times are
medians over all layers of one decoded row, dense and sparse in turn; what counts is the ratio. Then the last tokens of the
longest context are read one by one, as decodes see them, for the perplexity of each mass beside that of dense attention.
"""

import argparse
import math
import statistics
import sysconfig
import time
from pathlib import Path

import torch

from penstock.kernels.cpu.sparse_attention import SparseTelemetry
from penstock.kernels.span import Span
from penstock.models.attention_hook import StepContext
from penstock.models.cpu_kv_cache import CpuKVCache
from penstock.models.loading import LoadedModel, load_model
from penstock.models.tokenizer import Tokenizer

BLOCK = 32
CHUNK = 512
ROUNDS = 30


class Timed(CpuKVCache):
    """Remembers each layer's last query, to decode the same row again and again."""

    def __init__(self, *args, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **options)
        self.rows: dict[int, tuple] = {}

    def attend(self, layer, query, key, value, batch, **options):  # type: ignore[no-untyped-def]
        self.rows[layer] = (query[:, -1:].clone(), key[:, -1:].clone(), value[:, -1:].clone(), options)
        return super().attend(layer, query, key, value, batch, **options)


def text_of(tokenizer: Tokenizer, length: int) -> list[int]:
    ids: list[int] = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids += tokenizer.encode(file.read_text(encoding="utf-8"))
        if len(ids) >= length:
            return ids[:length]
    raise SystemExit(f"The standard library has fewer than {length} tokens.")


def decode(cache: Timed, span: Span) -> float:
    """Seconds of attention in all layers for the row that `span` decodes."""
    batch = cache.prepare([span])
    start = time.perf_counter()
    for layer, (query, key, value, options) in list(cache.rows.items()):
        CpuKVCache.attend(cache, layer, query, key, value, batch, **options)
    return time.perf_counter() - start


def perplexity(
    model: LoadedModel, cache: CpuKVCache, ids: list[int], table: list[int], count: int, mass: float | None
) -> float:
    """Of the last `count` tokens, each computed as a decode over all before it."""
    loss = 0.0
    for position in range(len(ids) - 1 - count, len(ids) - 1):
        logits = model.module(
            input_ids=torch.tensor([[ids[position]]]),
            position_ids=torch.tensor([[position]]),
            use_cache=False,
            penstock=StepContext(cache, cache.prepare([Span(table, position, 1, mass)])),
        ).logits
        loss -= float(logits[0, 0].float().log_softmax(-1)[ids[position + 1]])
    return math.exp(loss / count)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--mass", default="0.8,0.9,0.95,0.99")
    parser.add_argument("--decoded", type=int, default=256, help="tokens whose perplexity is taken")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model), Tokenizer.load(args.model)
    longest = model.max_model_len
    ids = text_of(tokenizer, longest)
    num_blocks = longest // BLOCK
    cache = Timed(model.layers, num_blocks + 1, BLOCK, model.dtype, sparse=True)
    table = list(range(1, num_blocks + 1))
    print(
        "| context | dense ms | "
        + " | ".join(f"mass {m}: time, kept, estimated" for m in args.mass.split(","))
        + " |"
    )
    print("|---|---|" + "---|" * len(args.mass.split(",")))
    done = 0
    for length in (2048, 4096, 8192, 16384):
        if length > longest:
            break
        while done < length:
            stop = min(done + CHUNK, length)
            model.module(
                input_ids=torch.tensor([ids[done:stop]]),
                position_ids=torch.arange(done, stop)[None],
                use_cache=False,
                logits_to_keep=1,
                penstock=StepContext(cache, cache.prepare([Span(table, done, stop - done)])),
            )
            done = stop
        cells = []
        dense = []
        for mass in map(float, args.mass.split(",")):
            cache.sparse_telemetry = SparseTelemetry()
            sparse = []
            for _ in range(ROUNDS):
                dense.append(decode(cache, Span(table, length - 1, 1)))
                sparse.append(decode(cache, Span(table, length - 1, 1, mass)))
            t = cache.sparse_telemetry
            ratio = statistics.median(sparse) / statistics.median(dense[-ROUNDS:])
            cells.append(
                f"{ratio:.2f}x, {t.kept_tokens / t.context_tokens:.3f}, {t.estimated_mass / t.rows:.3f}"
            )
        print(f"| {length} | {statistics.median(dense) * 1e3:.2f} | " + " | ".join(cells) + " |", flush=True)
    masses = [float(mass) for mass in args.mass.split(",")]
    exact = perplexity(model, cache, ids[:done], table, args.decoded, None)
    print(f"perplexity of the last {args.decoded} tokens at {done}: dense {exact:.4f}", end="")
    for mass in masses:
        found = perplexity(model, cache, ids[:done], table, args.decoded, mass)
        print(f", mass {mass} {found:.4f} ({found / exact - 1:+.3%})", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
