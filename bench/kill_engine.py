"""Kills the engine under live streams, again and again, and compares what each client got with an undisturbed run.

    penstock serve --no-cache &
    python bench/kill_engine.py --pid PID --kills 20 --streams 64

PID is the server's; its engine is found among its children. Streams are seeded, greedy and sampled, and never repeat a
prompt; the text, the finish reason and the token count of each must equal those of the run without kills.
"""

import argparse
import asyncio
import json
import random
import time

import aiohttp
import psutil

WORDS = ("list", "files", "copy", "move", "archive", "search", "text", "process", "disk", "network", "size")


def requests(count: int, max_tokens: int, rng: random.Random) -> list[dict[str, object]]:
    return [
        {
            "model": "builtin",
            "messages": [
                {"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.choice([5, 30, 90])))}
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "temperature": rng.choice([0, 0.8]),
            "seed": number,
            "ignore_eos": True,
        }
        for number in range(count)
    ]


async def stream(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> tuple[str, str, int]:
    text, reason, tokens = "", "", 0
    async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
    return text, reason, tokens


def engine_of(pid: int) -> psutil.Process | None:
    for child in psutil.Process(pid).children(recursive=True):
        if any("engine_server" in part for part in child.cmdline()):
            return child
    return None


async def run(args: argparse.Namespace) -> int:
    rng = random.Random(args.seed)
    bodies = requests(args.streams, args.max_tokens, rng)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=1200)
    ) as session:
        undisturbed = await asyncio.gather(*(stream(session, args.url, body) for body in bodies))
        print(
            f"undisturbed: {sum(tokens for *_, tokens in undisturbed)} tokens in {args.streams} streams",
            flush=True,
        )
        kills, rounds, lost, changed = 0, 0, 0, 0
        while kills < args.kills:
            rounds += 1
            tasks = [asyncio.ensure_future(stream(session, args.url, body)) for body in bodies]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(rng.uniform(0.05, args.longest))
                engine = engine_of(args.pid)
                if kills < args.kills and engine is not None and not all(task.done() for task in tasks):
                    engine.kill()
                    kills += 1
                    print(
                        f"{time.strftime('%H:%M:%S')} kill {kills} with "
                        f"{sum(not task.done() for task in tasks)} streams live",
                        flush=True,
                    )
                    await asyncio.sleep(args.between)
            found = await asyncio.gather(*tasks, return_exceptions=True)
            lost += sum(isinstance(one, BaseException) for one in found)
            changed += sum(
                not isinstance(one, BaseException) and one != expected
                for one, expected in zip(found, undisturbed, strict=True)
            )
            for one in found:
                if isinstance(one, BaseException):
                    print("lost:", one)
    print(
        json.dumps(
            {"kills": kills, "rounds": rounds, "streams": args.streams, "lost": lost, "changed": changed}
        )
    )
    return int(lost or changed)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--longest", type=float, default=1.0, help="seconds until a kill, at most")
    parser.add_argument(
        "--between", type=float, default=3.5, help="seconds after a kill, for the engine to come back"
    )
    parser.add_argument("--seed", type=int, default=0)
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
