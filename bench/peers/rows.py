"""What is measured, by one piece of code for every engine. Prompts are random tokens, new ones for every sample."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

from engines import Engine
from load_client import LoadPlan, SyntheticPrompts, fit_words, run_load
from processes import Server, Worker

PROMPT_TOKENS = OUTPUT_TOKENS = 128
LARGEST_TOKEN_ID = 4000  # The built-in tokenizer has 4,096, the first of them special.
HTTP_TOKENS = 64

Figures = dict[str, float]


def random_prompts(rng: random.Random, count: int, length: int) -> list[list[int]]:
    return [[rng.randrange(10, LARGEST_TOKEN_ID) for _ in range(length)] for _ in range(count)]


def single(worker: Worker, rng: random.Random) -> Figures:
    (times,) = worker.run(random_prompts(rng, 1, PROMPT_TOKENS), OUTPUT_TOKENS)
    decode = (len(times) - 1) / (times[-1] - times[0])
    return {"single_decode_tok_s": decode, "single_ttft_ms": times[0] * 1e3}


def concurrent16(worker: Worker, rng: random.Random) -> Figures:
    arrivals = worker.run(random_prompts(rng, 16, PROMPT_TOKENS), OUTPUT_TOKENS)
    return {"concurrent16_tok_s": throughput(arrivals)}


def ttft1024(worker: Worker, rng: random.Random) -> Figures:
    ((first,),) = worker.run(random_prompts(rng, 1, 1024), 1)
    return {"ttft_1024_ms": first * 1e3}


def shared_prefix(worker: Worker, rng: random.Random) -> Figures:
    """The prefix is new to the engine; each of the 16 goes on with 16 tokens of its own."""
    (prefix,) = random_prompts(rng, 1, 512)
    arrivals = worker.run([prefix + own for own in random_prompts(rng, 16, 16)], 64)
    return {"shared_prefix_tok_s": throughput(arrivals)}


def throughput(arrivals: list[list[float]]) -> float:
    """Output tokens per second, from giving the prompts to the last token."""
    return sum(map(len, arrivals)) / max(times[-1] for times in arrivals)


def cold_start(engine: Engine, model: Path) -> Figures:
    """From starting a process to its first token; files lie in the page cache, and compilers' caches are filled."""
    worker = Worker(engine, model)
    try:
        worker.run([[7, 8, 9, 10]], 1)
        return {"cold_start_s": time.perf_counter() - worker.spawned}
    finally:
        worker.close()


def warm_up(worker: Worker) -> None:
    rng = random.Random("warm-up")
    worker.run(random_prompts(rng, 16, PROMPT_TOKENS), 32)
    worker.run(random_prompts(rng, 1, 1024), 8)


IN_PROCESS: dict[str, Callable[[Worker, random.Random], Figures]] = {
    "single": single,
    "concurrent16": concurrent16,
    "ttft1024": ttft1024,
    "shared_prefix": shared_prefix,
}
CLIENTS = {"http1": 1, "http16": 16, "http64": 64}
"""Rows over HTTP, by their number of clients."""
ROWS = (*IN_PROCESS, "cold_start", *CLIENTS)
"""Every row by name, in the order of measurement."""


def over_http(server: Server, words: int, clients: int, seed: int) -> Figures:
    """Streams of 64 tokens of random words and 64 of answer, from `clients` clients: four from each, 16 at least.

    Args:
        words: how many make the 64 tokens, from `warm_up_server`.
    """
    plan = LoadPlan(
        prompt=SyntheticPrompts(words, seed=1000 * clients + seed),
        url=server.url,
        endpoint="completions",
        requests=max(16, 4 * clients),
        concurrency=clients,
        max_tokens=HTTP_TOKENS,
        keep_alive=False,
        extra={"ignore_eos": True},
    )
    report = asyncio.run(run_load(plan))
    if report.completed != plan.requests or report.output_tokens != plan.requests * HTTP_TOKENS:
        raise ValueError(f"over HTTP, {report.completed} of {plan.requests} completed: {report.errors}")
    assert report.output_tokens_per_second is not None
    return {f"http{clients}_tok_s": report.output_tokens_per_second}


def warm_up_server(server: Server) -> int:
    """Words that make 64 tokens with the server's tokenizer."""
    plan = LoadPlan(
        prompt=SyntheticPrompts(1),
        url=server.url,
        endpoint="completions",
        keep_alive=False,
        extra={"ignore_eos": True},
    )
    words = asyncio.run(fit_words(plan, HTTP_TOKENS))
    for clients in (64, 16, 1):
        over_http(server, words, clients, seed=999)
    return words
