"""Measures one engine on one model in a process of its own, and prints the figures as one JSON line.

    python bench/engine_worker.py --system penstock --model builtin --quantize w8a8
    python bench/engine_worker.py --system transformers --model FOLDER

Both systems run in process on the same prompts: Penstock's `Engine`, and transformers' own continuous batching. Random
token prompts, greedy, a fixed number of output tokens whatever the model says.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from penstock.scheduler.engine_config import Precision

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 128
LONG_PROMPT_TOKENS = 1024
LARGEST_TOKEN_ID = 4000


class System(Protocol):
    def run(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[float]]:
        """Complete all prompts at once; returns the arrival times of each prompt's tokens."""
        ...


class Penstock:
    def __init__(
        self,
        model: str,
        quantize: Precision,
        threads: int | None,
        speculation: Literal["auto", "off"] = "auto",
    ) -> None:
        import gc

        from penstock.models.light_import import light_import

        # As the engine's own process loads it (scheduler/engine_server.py).
        gc.disable()
        with light_import():
            from penstock.scheduler.engine import Engine
            from penstock.scheduler.engine_config import EngineConfig

            self._engine = Engine(
                EngineConfig(
                    model=model,
                    quantize=quantize,
                    threads=threads,
                    max_model_len=2048,
                    speculation=speculation,
                )
            )
        gc.freeze()
        gc.enable()

    def run(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[float]]:
        from penstock.scheduler.sampling_params import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=num_output_tokens, ignore_eos=True)
        for number, prompt in enumerate(prompts):
            self._engine.add_request(str(number), prompt, params)
        arrivals: list[list[float]] = [[] for _ in prompts]
        while self._engine.has_work():
            deltas = self._engine.step()
            now = time.perf_counter()
            for delta in deltas:
                arrivals[int(delta.request_id)].extend([now] * len(delta.token_ids))
        return arrivals


class Transformers:
    def __init__(self, model: str, threads: int | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

        from penstock.models.location import resolve_model

        if threads:
            torch.set_num_threads(threads)
        module = AutoModelForCausalLM.from_pretrained(resolve_model(model), dtype="auto")
        # Enough KV for every row, as ours has. Left alone it would take 80 % of the machine's memory.
        config = ContinuousBatchingConfig(page_size=256, num_blocks=128, max_batch_tokens=512)
        self._manager = module.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=False, eos_token_id=-1, max_new_tokens=OUTPUT_TOKENS
            ),
            continuous_batching_config=config,
        )
        self._manager.start()

    def run(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[float]]:
        arrivals: dict[str, list[float]] = {}
        for prompt in prompts:
            request_id = self._manager.add_request(
                prompt, max_new_tokens=num_output_tokens, streaming=True, eos_token_id=-1
            )
            arrivals[request_id] = []
        while any(len(times) < num_output_tokens for times in arrivals.values()):
            result = self._manager.get_result(timeout=60)
            if result is None:
                raise RuntimeError("transformers gave nothing for 60 seconds")
            times = arrivals[result.request_id]
            times.extend([time.perf_counter()] * (len(result.generated_tokens) - len(times)))
        return list(arrivals.values())

    def close(self) -> None:
        self._manager.stop(block=True)


def measure(system: System, repeats: int) -> dict[str, float]:
    """The rows of the table; medians over `repeats`."""
    rng = random.Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[rng.randrange(10, LARGEST_TOKEN_ID) for _ in range(length)] for _ in range(count)]

    single, batch, ttft = [], [], []
    for _ in range(repeats):
        (times,) = system.run(prompts(1, PROMPT_TOKENS), OUTPUT_TOKENS)
        single.append((len(times) - 1) / (times[-1] - times[0]))
        sixteen, long_one = prompts(16, PROMPT_TOKENS), prompts(1, LONG_PROMPT_TOKENS)
        start = time.perf_counter()
        arrivals = system.run(sixteen, OUTPUT_TOKENS)
        batch.append(sum(map(len, arrivals)) / (max(times[-1] for times in arrivals) - start))
        start = time.perf_counter()
        (times,) = system.run(long_one, 1)
        ttft.append((times[0] - start) * 1000)
    return {
        "single_decode_tok_s": _median(single),
        "concurrent16_tok_s": _median(batch),
        "ttft_1024_ms": _median(ttft),
    }


def peak_rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status names no VmHWM")


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=("penstock", "transformers"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", default="w8a8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spawned-at", type=float, help="time.time() of the spawning process")
    args = parser.parse_args()
    spawn_seconds = max(0.0, time.time() - args.spawned_at) if args.spawned_at else 0.0
    begun = time.perf_counter()
    system: Penstock | Transformers
    if args.system == "penstock":
        system = Penstock(args.model, args.quantize, args.threads)
    else:
        system = Transformers(args.model, args.threads)
    system.run([[7, 8, 9, 10]], 1)
    cold = spawn_seconds + time.perf_counter() - begun
    figures = {"cold_start_s": cold, **measure(system, args.repeats), "peak_rss_mb": peak_rss_mb()}
    print(json.dumps(figures), flush=True)
    if isinstance(system, Transformers):
        system.close()


if __name__ == "__main__":
    main()
