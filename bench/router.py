r"""Whether a cascade of two models beats a random mix of them at every cost: over three splits of one workload.

    PYTHONPATH=models python -m recipe.texts --data DATA --out TEXTS
    python bench/router.py --tiers builtin:w8a8 builtin-large:none --data TEXTS/page_wordings.jsonl --work WORK \
        --output bench/results

Asks both tiers through `penstock serve`, as `penstock tune router` does, once; fits, calibrates and tests for each seed. The
answers stay in WORK. Writes router.md, router.json and router.png (of the first seed).
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from penstock.tune.own_server import own_server
from penstock.tune.router.collect import Tier
from penstock.tune.router.curve import PLACES, Curve, trace
from penstock.tune.router.job import RouterJob, ask_and_score, learn_from, work_folder
from penstock.tune.router.learn import scores_of
from penstock.tune.router.plot import draw
from penstock.tune.router.report import Report, as_dict, lines
from penstock.tune.router.rows import outcomes_of, split
from penstock.tune.router.scoring import Scored
from penstock.tune.router.workload import read_workload

SEEDS = (0, 1, 2)
SMALL, LARGE = "small", "large"


def serve(stack: ExitStack, model: str, name: str) -> Tier:
    folder, _, precision = model.rpartition(":")
    flags = ["--model", folder or precision, "--served-model-name", name, "--no-cache"]
    if folder:
        flags += ["--quantize", precision]
    return Tier(stack.enter_context(own_server(flags)), name)


def rounded(value: Any) -> Any:
    """To five digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def worst(curve: Curve) -> str:
    """The least gain, by the low end of its interval, and where."""
    gain = min(curve.gain, key=lambda one: one.low)
    place = PLACES[curve.gain.index(gain)]
    return f"{100 * gain.value:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}] at {place:g}"


def together(scored: Scored, reports: dict[int, Report], place: int) -> Curve:
    """Of what the fit of each split has not seen, of all splits: each by its own judge; intervals go by topic."""
    found = [(reports[seed].learned.policies[place], split(scored.rows, seed).held_back) for seed in SEEDS]
    scores = np.concatenate([scores_of(policy.ruling, rows) for policy, rows in found])
    outcomes = outcomes_of([row for _, rows in found for row in rows])
    return trace(scores, outcomes, cascade=found[0][0].cascade)


def table(scored: Scored, reports: dict[int, Report]) -> list[str]:
    found = [
        "| split | router | points more right than a random mix, mean over costs | more, surely so at | least, at a cost |",
        "|---|---|---|---|---|",
    ]
    names = [policy.name for policy in reports[SEEDS[0]].learned.policies]
    curves = [
        (str(seed), policy.name, policy.curve)
        for seed, report in reports.items()
        for policy in report.learned.policies
    ]
    curves += [("all", name, together(scored, reports, place)) for place, name in enumerate(names)]
    for which, name, curve in curves:
        mean = curve.mean_gain
        gains = f"{100 * mean.value:+.2f} [{100 * mean.low:+.2f}, {100 * mean.high:+.2f}]"
        more, surely = (sum(getattr(gain, end) > 0 for gain in curve.gain) for end in ("value", "low"))
        where = f"{more}, {surely} of {len(PLACES)} costs"
        found.append(f"| {which} | {name} | {gains} | {where} | {worst(curve)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tiers", nargs=2, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--score", default="matcher")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--embeddings", metavar="MODEL", help="of the question, for the predictive router")
    parser.add_argument("--buffers", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--qualities", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    items = read_workload(args.data, matched=args.score == "matcher")
    job = RouterJob(
        small=SMALL,
        large=LARGE,
        workload=f"`{args.data.name}`",
        score=args.score,
        qualities=args.qualities,
        delta=0.05,
        buffers=args.buffers,
        max_tokens=args.max_tokens,
        concurrency=16,
        drafts=True,
        seed=SEEDS[0],
        prices=None,
        embedding_model=args.embeddings,
        identity=args.tiers,
        output=args.work / "router.json",
        force=True,
    )
    work = work_folder(job, items)
    with ExitStack() as stack:
        tiers = serve(stack, args.tiers[0], SMALL), serve(stack, args.tiers[1], LARGE)
        scored = ask_and_score(job, tiers, items, work, lambda part, done, of: None)
    work.close()
    reports = {seed: learn_from(job, scored, seed) for seed in SEEDS}
    text = [
        f"small: {args.tiers[0]}, large: {args.tiers[1]}",
        "",
        *table(scored, reports),
        "",
        *lines(reports[SEEDS[0]]),
    ]
    (args.output / "router.md").write_text("\n".join(text) + "\n")
    values = {seed: msgspec.to_builtins(as_dict(report)) for seed, report in reports.items()}
    (args.output / "router.json").write_text(json.dumps(rounded(values)) + "\n")
    draw(reports[SEEDS[0]], [args.output / "router.png"])
    print("\n".join(text))


if __name__ == "__main__":
    main()
