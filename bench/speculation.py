"""What a draft saves: end-to-end time of one 128-token answer with a right, a half-right and a useless draft, beside none.

    python bench/speculation.py                              the shape of Qwen2.5-0.5B, random weights, W8A8
    python bench/speculation.py --model builtin

All variants take turns in one process, so that a drift of the machine's speed hits each; medians and ratios. Every
answer must be the same, token for token.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

BENCH = Path(__file__).parent
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 128


def drafts_of(answer: list[int], rng: random.Random) -> dict[str, list[int] | None]:
    noise = [rng.randrange(10, 4000) for _ in answer]
    half = len(answer) // 2
    runs = list(answer)
    for start in range(8, len(answer), 16):  # eight right, eight wrong, and so on
        runs[start : start + 8] = noise[start : start + 8]
    return {
        "none": None,
        "right": answer,
        "first half right": answer[:half] + noise[half:],
        "second half right": noise[:half] + answer[half:],
        "right and wrong by turns": runs,
        "one token in 16 changed": [noise[i] if i % 16 == 15 else token for i, token in enumerate(answer)],
        "useless": noise,
    }


def measure(model: str, repeats: int) -> dict[str, dict[str, float]]:
    from penstock import Engine, EngineConfig, SamplingParams

    engine = Engine(EngineConfig(model=model, quantize="w8a8", max_model_len=2048, prefix_caching=False))
    params = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True, drafters=())

    def run(prompt: list[int], draft: list[int] | None) -> tuple[list[int], float]:
        start = time.perf_counter()
        engine.add_request("one", prompt, params, draft_token_ids=draft)
        tokens: list[int] = []
        while engine.has_work():
            for delta in engine.step():
                tokens += delta.token_ids
        return tokens, time.perf_counter() - start

    rng = random.Random(1)
    seconds: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        prompt = [rng.randrange(10, 4000) for _ in range(PROMPT_TOKENS)]
        answer, _ = run(prompt, None)
        for name, draft in drafts_of(answer, rng).items():
            tokens, took = run(prompt, draft)
            if tokens != answer:
                raise SystemExit(f"{name}: another answer than without a draft")
            if turn:  # the first warms up
                seconds.setdefault(name, []).append(took)
    median = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    return {name: {"seconds": took, "times_faster": median["none"] / took} for name, took in median.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="default: the shape of Qwen2.5-0.5B")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = args.model
    if not model:
        made = subprocess.run(
            [sys.executable, str(BENCH / "shapes.py")], capture_output=True, text=True, check=True
        )
        model = made.stdout.strip().splitlines()[-1]
    found = measure(model, args.repeats)
    for name, figures in found.items():
        print(f"{name:26} {figures['seconds']:7.3f} s  {figures['times_faster']:5.2f}x")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
