"""Whether a route through the real proxy keeps what its router file promises: two simulated upstreams of known quality.

    python bench/router_promise.py --seeds 20 --output bench/results/router-promise.md

For each seed `penstock tune router` asks 600 questions of both through a Penstock; another Penstock serves the route by
the file that comes of it, and answers 600 further ones. Questions are easier or harder, which only the small model's
log-probabilities tell, and not too clearly; both answer right with a known chance.
"""

import argparse
import asyncio
import json
import math
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from penstock.proxy.routing.learned.router_file import read_router_file
from penstock.tune.own_server import own_server

QUESTIONS = 600
QUALITIES = (0.9, 0.95)
TOKENS = 6
CONCURRENCY = 16
RIGHT, WRONG = "yes", "no"


def log_odds(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def answer_of(model: str, question: str) -> tuple[str, list[float]]:
    """The same for the same question."""
    rng = random.Random(f"{question} of both")
    hard = rng.gauss(0, 1)
    rng = random.Random(f"{question} of {model}")
    right = rng.random() < log_odds(1.5 - 1.8 * hard if model == "small" else 3 - hard)
    sure = 1.5 * right - 0.7 * hard + rng.gauss(0, 1)
    return RIGHT if right else WRONG, [-math.exp(-sure) * (0.5 + rng.random()) for _ in range(TOKENS)]


async def answer(request: web.Request) -> web.Response:
    body = await request.json()
    text, chosen = answer_of(body["model"], body["messages"][-1]["content"])
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    if body.get("logprobs"):
        choice["logprobs"] = {
            "content": [
                {
                    "token": "x",
                    "bytes": [120],
                    "logprob": value,
                    "top_logprobs": [{"token": "x", "bytes": [120], "logprob": value}],
                }
                for value in chosen
            ],
            "refusal": None,
        }
    usage = {"prompt_tokens": 10, "completion_tokens": TOKENS, "total_tokens": 10 + TOKENS}
    head = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"]}
    return web.json_response({**head, "choices": [choice], "usage": usage})


@contextmanager
def upstreams() -> Iterator[str]:
    """Both models, at one address."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    address = []

    async def start() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        started.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    started.wait()
    yield address[0]
    loop.call_soon_threadsafe(loop.stop)


def settings(upstream: str, routes: str = "") -> str:
    table = f'[upstreams.up]\nbase_url = "{upstream}"\nmodels = ["small", "large"]\n'
    return f'model = "none"\ncache = false\n{table}{routes}'


def route(quality: float) -> str:
    targets = 'targets = ["up/small", "up/large"]'
    return f'[routes."q{quality:g}"]\npolicy = "cascade"\n{targets}\nrouter = "router.json"\nquality = {quality}\n'


async def served(url: str, model: str, questions: list[str]) -> tuple[int, int]:
    """How many answers are right, and how many the small model gave."""
    left, right, small = iter(questions), 0, 0
    async with aiohttp.ClientSession() as session:

        async def work() -> None:
            nonlocal right, small
            for question in left:
                body = {
                    "model": model,
                    "temperature": 0,
                    "messages": [{"role": "user", "content": question}],
                }
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    reply = await response.json()
                right += reply["choices"][0]["message"]["content"] == RIGHT
                small += response.headers["x-penstock-model"].endswith("small")

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return right, small


def questions_of(seed: object) -> list[str]:
    """All of one kind: their words say nothing."""
    rng = random.Random(f"{seed} questions")
    return ["what is " + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(QUESTIONS)]


def tune(url: str, seed: int, folder: Path) -> None:
    data = folder / "questions.jsonl"
    lines = [{"question": question, "answer": RIGHT} for question in questions_of(seed)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "penstock", "tune", "router", "--tiers", "up/small", "up/large"]
    command += ["--url", url, "--data", str(data), "--prices", "0.1/0.1", "1/1"]
    command += ["--concurrency", str(CONCURRENCY), "--output", str(folder / "router.json")]
    command += ["--qualities", ",".join(map(str, QUALITIES))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def one_seed(upstream: str, seed: int) -> Iterator[str]:
    """A row of the table for each promise."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "penstock.toml"
        config.write_text(settings(upstream))
        with own_server(["--config", str(config)]) as url:
            tune(url, seed, folder)
        thresholds = read_router_file(folder / "router.json").cascade[0].thresholds
        able = [threshold.quality for threshold in thresholds if threshold.score is not None]
        routes = "".join(map(route, able)).replace("router.json", str(folder / "router.json"))
        config.write_text(settings(upstream, routes))
        questions = questions_of(f"{seed} again")
        large = sum(answer_of("large", question)[0] == RIGHT for question in questions)
        with own_server(["--config", str(config)]) as url:
            for quality in QUALITIES:
                if quality not in able:
                    yield f"| {seed} | {quality:g} | none | | |"
                    continue
                right, small = asyncio.run(served(url, f"q{quality:g}", questions))
                kept = "yes" if right >= quality * large else "NO"
                yield f"| {seed} | {quality:g} | {small / QUESTIONS:.0%} | {right / large:.3f} | {kept} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = [
        f"{QUESTIONS} questions to tune by and {QUESTIONS} further ones; quality: right answers over the large model's own.",
        "",
        "| seed | promise | from the small model | quality | kept |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with upstreams() as upstream:
        for seed in range(args.seeds):
            for line in one_seed(upstream, seed):
                print(line, flush=True)
                lines.append(line)
    verdicts = [line.rsplit("|", 2)[1].strip() for line in lines[4:]]
    lines += ["", f"Kept: {verdicts.count('yes')} of {len(verdicts)}."]
    print(lines[-1])
    if args.output is not None:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
