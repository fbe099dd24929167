"""Penstock's engine beside transformers' own continuous batching, in turn on the same machine: `make bench`.

Each measurement runs in a fresh process (bench/engine_worker.py). The systems take turns, so that a drift of the machine's
speed hits both, and a figure is the median over the turns. Prints a table with ratios, and writes all figures as JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

BENCH = Path(__file__).parent
LOWER_IS_BETTER = {"cold_start_s", "ttft_1024_ms", "peak_rss_mb"}
TITLES = {
    "single_decode_tok_s": "single stream, decode tok/s",
    "concurrent16_tok_s": "16 concurrent, tok/s",
    "ttft_1024_ms": "TTFT at 1,024 tokens, ms",
    "cold_start_s": "cold start to first token, s",
    "peak_rss_mb": "peak RSS, MB",
}


def run_worker(system: str, model: str, repeats: int) -> dict[str, float]:
    command = [sys.executable, str(BENCH / "engine_worker.py"), "--system", system, "--model", model]
    command += ["--repeats", str(repeats), "--spawned-at", str(time.time())]
    # Ours by default; for both, since unbounded spinning loses to any other busy process on the machine by a factor.
    environment = {"GOMP_SPINCOUNT": "3000"} | os.environ
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def compare(model: str, turns: int, repeats: int) -> dict[str, dict[str, float]]:
    taken: dict[str, list[dict[str, float]]] = {"penstock": [], "transformers": []}
    for _ in range(turns):
        for system, runs in taken.items():
            runs.append(run_worker(system, model, repeats))
    return {
        system: {name: median([run[name] for run in runs]) for name in TITLES}
        for system, runs in taken.items()
    }


def table(model: str, figures: dict[str, dict[str, float]]) -> str:
    lines = [f"| {model} | Penstock W8A8 | transformers | better by |", "|---|---|---|---|"]
    for name, title in TITLES.items():
        ours, theirs = figures["penstock"][name], figures["transformers"][name]
        ratio = theirs / ours if name in LOWER_IS_BETTER else ours / theirs
        lines.append(f"| {title} | {ours:.4g} | {theirs:.4g} | {ratio:.2f}x |")
    return "\n".join(lines)


def hardware() -> dict[str, object]:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=BENCH
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="processes per system and model")
    parser.add_argument("--repeats", type=int, default=3, help="measurements within a process")
    parser.add_argument("--only", choices=("builtin", "qwen2.5-0.5b"), help="one model instead of both")
    parser.add_argument("--json", type=Path, default=BENCH / "results" / "engine-cpu.json")
    args = parser.parse_args()
    models = {"builtin": "builtin", "qwen2.5-0.5b": ""}
    results = {}
    for name, model in models.items():
        if args.only and name != args.only:
            continue
        if not model:
            # In a process of its own: making half a billion random weights would count into nobody's peak memory.
            made = subprocess.run(
                [sys.executable, str(BENCH / "shapes.py")],
                capture_output=True,
                text=True,
                check=True,
                timeout=600,
            )
            model = made.stdout.strip().splitlines()[-1]
        results[name] = compare(model, args.turns, args.repeats)
        print(table(name, results[name]), end="\n\n", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"hardware": hardware(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
