"""What each lever of compression costs in accuracy and gives in speed, on one model: made and measured by our own commands.

    PYTHONPATH=models python -m recipe.texts --data DATA --out TEXTS
    python bench/compression.py --model builtin --texts TEXTS --work WORK --output bench/results

Makes the variants in WORK (what is there already is taken as it is), and writes compression.{json,md,png,svg}. Variants are
independent of each other: `--only w8a8,mlp25` makes and measures some of them.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

PENSTOCK = [sys.executable, "-m", "penstock"]
# How each is made of MODEL; without words, it is how MODEL is served.
VARIANTS: dict[str, list[str]] = {
    "w8a8": ["quantize", "--scheme", "w8a8"],
    "w8a16": ["quantize", "--scheme", "w8a16"],
    "w4a16": ["quantize", "--scheme", "w4a16", "--group-size", "32"],
    "w4a16-kv8": ["quantize", "--scheme", "w4a16", "--group-size", "32", "--kv", "int8"],
    "mlp25": ["prune", "--mlp", "0.25"],
    "mlp25-bare": ["prune", "--mlp", "0.25", "--recovery-steps", "0"],
    "mlp50": ["prune", "--mlp", "0.5"],
    "mlp50-bare": ["prune", "--mlp", "0.5", "--recovery-steps", "0"],
    "layers25": ["prune", "--layers", "{quarter}"],
    "layers25-bare": ["prune", "--layers", "{quarter}", "--recovery-steps", "0"],
}


def make(name: str, model: str, texts: Path, folder: Path, quarter: int) -> None:
    """Whatever its figures: a table is to show what fails, too, hence --force."""
    words = [word.format(quarter=quarter) for word in VARIANTS[name]]
    command = [*PENSTOCK, words[0], model, *words[1:], "--data", str(texts / "train.jsonl")]
    subprocess.run([*command, "--output", str(folder), "--no-speed", "--force"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--quarter", type=int, default=2, help="a quarter of the model's layers")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--also", nargs="*", default=[], help="more models for the table: students")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    models = [f"{args.model}:none"]
    for name in args.only.split(","):
        if not (args.work / name).is_dir():
            make(name, args.model, args.texts, args.work / name, args.quarter)
        models.append(str(args.work / name))
    for tasks in ("tasks", "page_tasks"):
        report = args.work / f"report-{tasks}"
        command = [
            *PENSTOCK,
            "eval",
            "models",
            *models,
            *args.also,
            "--text",
            str(args.texts / "pages.jsonl"),
        ]
        speed = ["--speed"] if tasks == "tasks" else []
        subprocess.run(
            [
                *command,
                "--tasks",
                str(args.texts / f"{tasks}.jsonl"),
                *speed,
                "--output",
                str(report),
                "--force",
            ],
            check=True,
        )
        for file in report.glob("eval.*"):
            shutil.copy(file, args.output / f"compression-{tasks}{file.suffix}")


if __name__ == "__main__":
    main()
