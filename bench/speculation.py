"""What a draft saves: end-to-end time of one 128-token answer with a right, a half-right and a useless draft, beside none.

    python bench/speculation.py                              the shape of Qwen2.5-0.5B, random weights, W8A8
    python bench/speculation.py --model builtin
    python bench/speculation.py --model builtin --late 2     a right draft that takes 2 ms to be found, waited for or not
    python bench/speculation.py --draft-model builtin        what a draft model saves or costs, at temperature 0 and 1
    python bench/speculation.py --model builtin --draft-model builtin --always 4     the most it could be right
    python bench/speculation.py --model builtin --draft-model STUDENT --questions FILE  answers to questions, to their ends

All variants take turns in one process, so that a drift of the machine's speed hits each; medians and ratios. Every
answer must be the same, token for token.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

import msgspec

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
    return medians(seconds)


async def measure_late(model: str, repeats: int, milliseconds: float) -> dict[str, dict[str, float]]:
    """A right draft given with its request, found later, and waited for before; and a search that finds none."""
    from penstock.scheduler import AsyncEngine, EngineConfig, SamplingParams

    engine = AsyncEngine(EngineConfig(model=model, quantize="w8a8", max_model_len=2048, prefix_caching=False))
    await engine.start()
    params = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True, drafters=())

    async def search(found: list[int] | None) -> list[int] | None:
        await asyncio.sleep(milliseconds / 1000)
        return found

    rng = random.Random(1)
    seconds: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        prompt = [rng.randrange(10, 4000) for _ in range(PROMPT_TOKENS)]
        answer: list[int] = []
        for name in ("none", "at the start", "later", "waited for", "nothing found"):
            start = time.perf_counter()
            draft: Awaitable[list[int] | None] | list[int] | None = None
            if name == "waited for":
                draft = await search(answer)
            elif name == "at the start":
                draft = answer
            elif name != "none":
                draft = search(answer if name == "later" else None)
            chunks = engine.generate(prompt, params, draft_token_ids=draft)
            tokens = [token async for chunk in chunks for token in chunk.token_ids]
            took = time.perf_counter() - start
            answer = answer or tokens
            if tokens != answer:
                raise SystemExit(f"{name}: another answer than without a draft")
            if turn:  # the first warms up
                seconds.setdefault(name, []).append(took)
    await engine.shutdown()
    return medians(seconds)


def medians(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    median = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    return {name: {"seconds": took, "times_faster": median["none"] / took} for name, took in median.items()}


def questions_in(file: Path, model: str) -> list[list[int]]:
    """The prompts of a file that `penstock eval models --tasks` takes."""
    from penstock.compress.evaluate.tasks import read_tasks
    from penstock.compress.texts import prompt_ids
    from penstock.models.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model)
    return [prompt_ids(tokenizer, task.example) for task in read_tasks(file)]


def measure_draft_model(
    model: str,
    precisions: tuple[str, str],
    draft_model: str,
    questions: list[list[int]],
    repeats: int,
    concurrent: int,
    always: int,
) -> dict[str, dict[str, float]]:
    """The same requests with and without the draft model, by turns.

    `precisions`: of the model and the draft model. `questions`: each is asked once, and its answer ends by itself; empty:
    `repeats` random prompts. `always`: so many guesses in every step, whatever they cost, or 0 for as many as pay.
    """
    from penstock import Engine, EngineConfig, SamplingParams
    from penstock.scheduler.outputs import DrafterStats

    engine = Engine(
        EngineConfig(
            model=model,
            quantize=precisions[0],
            max_model_len=2048,
            prefix_caching=False,
            draft_model=draft_model,
            draft_quantize=precisions[1],
        )
    )
    print(f"Drafts by {engine.info.draft_model}")
    planner = engine.speculator.planner
    assert planner is not None
    if always:
        planner.pays_to_catch_up = lambda candidate, num_seqs: True
        planner.choose_lengths = lambda times, run_times, chances, tokens, seqs: [
            min(always, chance.limit) for chance in chances
        ]

    def run(prompts: list[list[int]], params: SamplingParams) -> tuple[dict[str, list[int]], float]:
        start = time.perf_counter()
        tokens: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            engine.add_request(str(number), prompt, params)
        while engine.has_work():
            for delta in engine.step():
                tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
        return tokens, time.perf_counter() - start

    rng = random.Random(1)
    found: dict[str, dict[str, float]] = {}
    for temperature in (0.0, 1.0):
        seconds: list[float] = []
        ratios: list[float] = []
        engine.speculator.stats.clear()
        turns = len(questions) // concurrent if questions else repeats + 1
        for turn in range(turns):
            if questions:
                prompts = questions[turn * concurrent : (turn + 1) * concurrent]
            else:
                prompts = [[rng.randrange(10, 4000) for _ in range(PROMPT_TOKENS)] for _ in range(concurrent)]
            params = SamplingParams(
                temperature=temperature,
                seed=turn,
                max_tokens=OUTPUT_TOKENS,
                ignore_eos=not questions,
                drafters=(),
            )
            answers, plain = run(prompts, params)
            tokens, took = run(prompts, msgspec.structs.replace(params, drafters=("draft_model",)))
            if tokens != answers:
                raise SystemExit("another answer than without a draft model")
            if turn:  # the first warms up
                seconds.append(took)
                ratios.append(plain / took)
        stats = engine.stats.drafters.get("draft_model", DrafterStats())
        found[f"temperature {temperature}, {concurrent} at once"] = {
            "seconds": sorted(seconds)[len(seconds) // 2],
            "times_faster": sorted(ratios)[len(ratios) // 2],
            "times_faster_in_all": sum(ratio * took for ratio, took in zip(ratios, seconds, strict=True))
            / sum(seconds),
            "drafted": stats.drafted,
            "accepted": stats.accepted / max(1, stats.drafted),
            "acceptance_length": 1 + stats.accepted / max(1, stats.verifications),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="default: the shape of Qwen2.5-0.5B")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--late", type=float, default=0, help="milliseconds that it takes to find a draft")
    parser.add_argument("--draft-model", default="", help="measure this drafter instead")
    parser.add_argument(
        "--questions", type=Path, help="with a draft model: a file of tasks, instead of --repeats"
    )
    parser.add_argument("--concurrent", type=int, default=1, help="with a draft model: requests at once")
    parser.add_argument("--quantize", default="w8a8", help="with a draft model: the model's precision")
    parser.add_argument("--draft-quantize", default="auto", help="the draft model's precision")
    parser.add_argument("--always", type=int, default=0, help="with a draft model: guesses in every step")
    args = parser.parse_args()
    model = args.model
    if not model:
        made = subprocess.run(
            [sys.executable, str(BENCH / "shapes.py")], capture_output=True, text=True, check=True
        )
        model = made.stdout.strip().splitlines()[-1]
    if args.draft_model:
        questions = questions_in(args.questions, model) if args.questions else []
        found = measure_draft_model(
            model,
            (args.quantize, args.draft_quantize),
            args.draft_model,
            questions,
            args.repeats,
            args.concurrent,
            args.always,
        )
    elif args.late:
        found = asyncio.run(measure_late(model, args.repeats, args.late))
    else:
        found = measure(model, args.repeats)
    for name, figures in found.items():
        print(f"{name:26} {figures['seconds']:7.3f} s  {figures['times_faster']:5.2f}x", end="")
        if "drafted" in figures:
            print(
                f"  {figures['drafted']:.0f} guesses, {figures['accepted']:.1%} right, "
                f"{figures['acceptance_length']:.2f} tokens a draft's step, {figures['times_faster_in_all']:.2f}x in all",
                end="",
            )
        print()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
