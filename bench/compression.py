"""What each lever of compression costs in accuracy and gives in speed, on one model: made and measured by our own commands.

    PYTHONPATH=models python -m recipe.texts --data DATA --out TEXTS
    python bench/compression.py --model builtin-large --texts TEXTS --work WORK --output bench/results

Makes the variants in WORK (what is there already is taken as it is), and writes compression-tasks.* and
compression-page_tasks.*. Variants are independent of each other: `--only w8a8,mlp25` makes and measures some of them.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

PENSTOCK = [sys.executable, "-m", "penstock"]
# How each is made of MODEL.
VARIANTS: dict[str, list[str]] = {
    "w8a8": ["quantize", "--scheme", "w8a8"],
    "w8a16": ["quantize", "--scheme", "w8a16"],
    "w4a16": ["quantize", "--scheme", "w4a16", "--group-size", "32"],
    "mlp25": ["prune", "--mlp", "0.25"],
    "mlp25-bare": ["prune", "--mlp", "0.25", "--recovery-steps", "0"],
    "mlp50": ["prune", "--mlp", "0.5"],
    "mlp50-bare": ["prune", "--mlp", "0.5", "--recovery-steps", "0"],
    "layers25": ["prune", "--layers", "{quarter}"],
    "layers25-bare": ["prune", "--layers", "{quarter}", "--recovery-steps", "0"],
}
# As what each is served and measured, too.
SERVED_ALSO = {"w4a16": ["w4a16:kv8"]}
# The same student with its teacher's distributions to learn from, and with the texts alone: three seeds of each.
STUDENT = ["distill", "--layers", "{half}", "--steps", "{steps}"]
TEACHES = {"student": ["--hidden", "1", "--temperature", "2"], "student-alone": ["--cross-entropy", "1"]}
for seed in range(3):
    for name, options in TEACHES.items():
        VARIANTS[f"{name}-{seed}"] = [*STUDENT, *options, "--seed", str(seed)]


def make(name: str, model: str, texts: Path, folder: Path, numbers: dict[str, int]) -> None:
    """Whatever its figures: a table is to show what fails, too, hence --force."""
    what, *options = [word.format(**numbers) for word in VARIANTS[name]]
    source = ["--teacher", model] if what == "distill" else [model, "--no-speed"]
    command = [*PENSTOCK, what, *source, *options, "--data", str(texts / "train.jsonl")]
    subprocess.run([*command, "--output", str(folder), "--force"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="builtin-large")
    parser.add_argument("--layers", type=int, default=12, help="that the model has")
    parser.add_argument("--steps", type=int, default=400, help="of the students")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default=",".join(VARIANTS))
    args = parser.parse_args()
    for folder in (args.work, args.output):
        folder.mkdir(parents=True, exist_ok=True)
    names = args.only.split(",")
    numbers = {"quarter": args.layers // 4, "half": args.layers // 2, "steps": args.steps}
    for name in names:
        if not (args.work / name).is_dir():
            make(name, args.model, args.texts, args.work / name, numbers)
    # From WORK, so that the table calls them by their names.
    texts = Path(os.path.relpath(args.texts, args.work))
    model = os.path.relpath(args.model, args.work) if Path(args.model).is_dir() else args.model
    for tasks, speed in (("tasks", ["--speed"]), ("page_tasks", [])):
        served = [f"{model}:none", *(spec for name in names for spec in (name, *SERVED_ALSO.get(name, ())))]
        command = [*PENSTOCK, "eval", "models", *served, "--text", str(texts / "pages.jsonl")]
        command += ["--tasks", str(texts / f"{tasks}.jsonl"), *speed]
        subprocess.run([*command, "--output", f"report-{tasks}", "--force"], check=True, cwd=args.work)
        for file in (args.work / f"report-{tasks}").glob("eval.*"):
            shutil.copy(file, args.output / f"compression-{tasks}{file.suffix}")


if __name__ == "__main__":
    main()
