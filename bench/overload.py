"""Who waits for whom when there is too much to do: tenants, a long prompt beside streams, and three times what fits.

    python bench/overload.py tenants               two tenants, one with ten times the requests of the other
    python bench/overload.py neighbour             8 streams beside a prompt of 8,000 tokens, and without (0.5B shape)
    python bench/overload.py flood                 10,000 requests at three times the capacity

Each measures its own reference in the same run, and prints ratios and one JSON line. The engine is a child process, as
under `penstock serve`; the clients are coroutines here.
"""

import argparse
import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil

from penstock import AsyncEngine, EngineConfig, OverloadedError, SamplingParams

BENCH = Path(__file__).parent
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 32
# Of the load at whose peak a flood is measured.
SETTLING_SECONDS, PEAK_SECONDS = 5.0, 10.0
# Of a stream, before it is measured.
SETTLED_TOKENS = 16
# Beside a long prompt: more than there are steps until its first token, at two of its tokens a step.
STREAM_TOKENS = 4000


class Load:
    """Requests to one engine, and when their tokens came."""

    def __init__(self, engine: AsyncEngine, seed: int = 0) -> None:
        self.engine = engine
        self._rng = random.Random(seed)
        self._times: dict[asyncio.Task | None, list[float]] = {}  # of those that `stop` may end
        self.num_answered = 0

    def prompt(self, num_tokens: int) -> list[int]:
        return [self._rng.randrange(10, 4000) for _ in range(num_tokens)]

    async def one(
        self, tenant: str = "default", num_prompt: int = PROMPT_TOKENS, num_output: int = OUTPUT_TOKENS
    ):
        """Arrival times of its tokens, relative to its start."""
        start = time.perf_counter()
        params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True, drafters=())
        times: list[float] = []
        self._times[asyncio.current_task()] = times
        async for chunk in self.engine.generate(self.prompt(num_prompt), params, tenant=tenant):
            times += [time.perf_counter() - start] * len(chunk.token_ids)
        del self._times[asyncio.current_task()]
        self.num_answered += 1
        return times

    def num_tokens(self, task: asyncio.Task) -> int:
        """How many a request of `one` has had so far."""
        return len(self._times.get(task, ()))

    def forget(self) -> None:
        """The current task's request was refused."""
        del self._times[asyncio.current_task()]

    async def stop(self, task: asyncio.Task) -> list[float]:
        """End a request of `one` early; its tokens so far."""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return self._times.pop(task)

    async def closed(self, tenant: str, clients: int, seconds: float) -> list[list[float]]:
        """`clients` that each send their next request when the last is answered."""
        done: list[list[float]] = []
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                done.append(await self.one(tenant))

        await asyncio.gather(*(client() for _ in range(clients)))
        return done


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def tenants(load: Load, seconds: float, clients: int) -> dict[str, float]:
    await load.closed("small", clients, seconds / 4)  # warms up
    solo = [times[0] for times in await load.closed("small", clients, seconds)]
    both = await asyncio.gather(
        load.closed("small", clients, seconds), load.closed("large", 10 * clients, seconds)
    )
    small, large = ([times[0] for times in one] for one in both)
    return {
        "solo_ttft_p50_ms": 1e3 * percentile(solo, 0.5),
        "solo_ttft_p99_ms": 1e3 * percentile(solo, 0.99),
        "small_ttft_p50_ms": 1e3 * percentile(small, 0.5),
        "small_ttft_p99_ms": 1e3 * percentile(small, 0.99),
        "large_ttft_p99_ms": 1e3 * percentile(large, 0.99),
        "small_p99_over_solo": percentile(small, 0.99) / percentile(solo, 0.99),
        "small_requests": len(small),
        "large_requests": len(large),
    }


async def neighbour(load: Load, streams: int, prompt_tokens: int) -> dict[str, float]:
    async def gaps(measured: range | None) -> tuple[list[float], range, float]:
        """Between the streams' tokens: of those `measured` without anything beside, or of those that come while the long
        prompt is computed; which these are, and its TTFT.

        The same tokens both times: a stream's steps take longer as it grows, which is no neighbour's doing.
        """
        running = [asyncio.ensure_future(load.one(num_output=STREAM_TOKENS)) for _ in range(streams)]

        def fewest() -> int:
            return min(load.num_tokens(task) for task in running)

        async def have(count: int) -> None:
            while fewest() < count:
                assert not any(task.done() for task in running), "the streams ended too early"
                await asyncio.sleep(0.01)

        first = 0.0
        await have(SETTLED_TOKENS)
        if measured is None:
            begin = fewest()
            first = (await load.one("neighbour", prompt_tokens, 1))[0]
            measured = range(begin, fewest() + 1)  # with the token that comes with its own
        await have(measured.stop)
        seen = [await load.stop(task) for task in running]
        return (
            [
                later - earlier
                for times in seen
                for earlier, later in itertools.pairwise(times[measured.start - 1 : measured.stop])
            ],
            measured,
            first,
        )

    await gaps(range(SETTLED_TOKENS, 4 * SETTLED_TOKENS))
    beside, measured, first = await gaps(None)
    alone, _, _ = await gaps(measured)
    return {
        "alone_itl_p99_ms": 1e3 * percentile(alone, 0.99),
        "beside_itl_p99_ms": 1e3 * percentile(beside, 0.99),
        "p99_ratio": percentile(beside, 0.99) / percentile(alone, 0.99),
        "alone_itl_p50_ms": 1e3 * percentile(alone, 0.5),
        "beside_itl_p50_ms": 1e3 * percentile(beside, 0.5),
        "long_prompt_ttft_s": first,
        "streams_tokens": len(measured),
    }


async def flood(load: Load, requests: int, factor: float) -> dict[str, float]:
    # Counted while all 96 are at it: not from their common beginning, nor to the end of the last.
    clients = asyncio.ensure_future(load.closed("default", 96, SETTLING_SECONDS + PEAK_SECONDS))
    await asyncio.sleep(SETTLING_SECONDS)
    answered_before, began = load.num_answered, time.perf_counter()
    await asyncio.sleep(PEAK_SECONDS)
    peak = (load.num_answered - answered_before) / (time.perf_counter() - began)
    await clients
    child = psutil.Process(load.engine._host.pid)  # type: ignore[union-attr]
    own = psutil.Process()
    before = (child.memory_info().rss, own.memory_info().rss)
    answered_before, refused = load.num_answered, []
    rng = random.Random(1)

    async def one() -> None:
        start = time.perf_counter()
        try:
            await load.one()
        except OverloadedError:
            load.forget()
            refused.append(time.perf_counter() - start)

    tasks: set[asyncio.Task[None]] = set()
    begun = due = time.perf_counter()
    for _ in range(requests):
        due += rng.expovariate(factor * peak)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    lasted = time.perf_counter() - begun
    in_time = load.num_answered - answered_before
    await asyncio.gather(*tasks)
    after = (child.memory_info().rss, own.memory_info().rss)
    return {
        "peak_per_s": peak,
        "offered_per_s": requests / lasted,
        "goodput_per_s": in_time / lasted,
        "goodput_over_peak": in_time / lasted / peak,
        "answered": load.num_answered - answered_before,
        "refused": len(refused),
        "refusal_p50_ms": 1e3 * percentile(refused, 0.5),
        "refusal_p99_ms": 1e3 * percentile(refused, 0.99),
        "engine_rss_growth_mb": (after[0] - before[0]) / 2**20,
        "client_rss_growth_mb": (after[1] - before[1]) / 2**20,
    }


async def run(args: argparse.Namespace, model: str) -> None:
    config = EngineConfig(
        model=model,
        quantize="w8a8",
        max_waiting=args.max_waiting,
        max_model_len=10_000 if args.what == "neighbour" else None,
        kv_cache_tokens=8 * STREAM_TOKENS + 10_000 if args.what == "neighbour" else None,
    )
    engine = AsyncEngine(config)
    await engine.start()
    try:
        load = Load(engine)
        if args.what == "tenants":
            found = await tenants(load, args.seconds, args.clients)
        elif args.what == "neighbour":
            found = await neighbour(load, 8, args.long_prompt)
        else:
            found = await flood(load, args.requests, 3.0)
    finally:
        await engine.shutdown()
    for name, value in found.items():
        print(f"{name:24} {value:10.3f}")
    print(json.dumps({args.what: found}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tenants", "neighbour", "flood"))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=4, help="of the small tenant")
    parser.add_argument("--long-prompt", type=int, default=8000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--max-waiting", type=int, default=128)
    args = parser.parse_args()
    model = "builtin"
    if args.what == "neighbour":
        made = subprocess.run(
            [sys.executable, str(BENCH / "shapes.py")], capture_output=True, text=True, check=True
        )
        model = made.stdout.strip().splitlines()[-1]
    asyncio.run(run(args, model))


if __name__ == "__main__":
    main()
